"""The networks in torch: as large as their descriptions say, named as torchvision names them, and true to the paper."""

import copy
import hashlib
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from resforge.networks import Conv, Network, ResidualNetwork
from resforge.spec import ModelSpec
from tests.resforge.published import ROWS, Row
from tests.resforge.test_networks import networks, relatives
from trainer.models import build
from trainer.models.residual import BasicBlock, PadShortcut, ResidualBlock, ResNet


def network_of(
    family: str, depth: int, *, size: int, channels: int = 3, classes: int = 10, **fields: object
) -> Network:
    model = ModelSpec.model_validate({"family": family, "depth": depth, **fields})
    return model.network(channels=channels, classes=classes, image_size=size)


def counted_by_torch(network: Network) -> tuple[int, int]:
    """Parameters and multiply-adds of one image. FlopCounterMode counts a multiply-add as two."""
    with torch.device("meta"):
        module = build(network)
        image = torch.empty(1, network.channels, network.image_size, network.image_size)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            logits = module.eval()(image)
    assert logits.shape == (1, network.classes)
    return sum(parameter.numel() for parameter in module.parameters()), counter.get_total_flops() // 2


@pytest.mark.parametrize(
    "row",
    # 1202 layers take as long as all others together.
    [pytest.param(row, marks=[pytest.mark.stack] if "1202" in row.id else [], id=row.id) for row in ROWS],
)
def test_published_networks_are_what_they_are_described_as(row: Row) -> None:
    parameters, macs = counted_by_torch(row.network)
    assert parameters == row.parameters
    assert macs == row.network.macs


@settings(max_examples=25, deadline=None)
@given(networks())
def test_any_network_is_what_it_is_described_as(network: Network) -> None:
    assert counted_by_torch(network) == (network.parameters, network.macs)


@settings(max_examples=40, deadline=None)
@given(relatives())
def test_relatives_are_what_they_are_described_as(network: Network) -> None:
    assert counted_by_torch(network) == (network.parameters, network.macs)


# torchvision's naming rule: prefix -> the tensors below it. BN's are the same everywhere.
_BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def torchvision_names(blocks: tuple[int, ...], convs: int, projected: set[str]) -> list[str]:
    names = ["conv1.weight", *(f"bn1.{name}" for name in _BN)]
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            prefix = f"layer{stage}.{block}"
            for number in range(1, convs + 1):
                names += [f"{prefix}.conv{number}.weight", *(f"{prefix}.bn{number}.{name}" for name in _BN)]
            if prefix in projected:
                names += [f"{prefix}.downsample.0.weight", *(f"{prefix}.downsample.1.{name}" for name in _BN)]
    return [*names, "fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    ("depth", "blocks", "convs", "projected"),
    [
        (18, (2, 2, 2, 2), 2, {"layer2.0", "layer3.0", "layer4.0"}),
        (50, (3, 4, 6, 3), 3, {"layer1.0", "layer2.0", "layer3.0", "layer4.0"}),
        (152, (3, 8, 36, 3), 3, {"layer1.0", "layer2.0", "layer3.0", "layer4.0"}),
    ],
)
def test_state_dict_names_are_torchvisions(
    depth: int, blocks: tuple[int, ...], convs: int, projected: set[str]
) -> None:
    with torch.device("meta"):
        module = build(network_of("imagenet", depth, size=224))
    assert list(module.state_dict()) == torchvision_names(blocks, convs, projected)


def test_the_cifar_family_uses_the_same_names() -> None:
    with torch.device("meta"):
        module = build(network_of("cifar", 20, size=32))
    assert list(module.state_dict()) == torchvision_names((3, 3, 3), 2, set())


def test_shapes_of_torchvisions_resnet50() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in build(
            network_of("imagenet", 50, size=224, classes=1000, variant="v1.5")
        ).state_dict().items()}  # fmt: skip
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer4.2.conv2.weight"] == (512, 512, 3, 3)
    assert shapes["fc.weight"] == (1000, 2048)


def test_the_seed_gives_the_same_weights_to_the_last_bit() -> None:
    def digest(seed: int) -> str:
        torch.manual_seed(seed)
        state = build(network_of("cifar", 8, size=8)).state_dict()
        return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state.values())).hexdigest()

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


def test_he_initialisation() -> None:
    torch.manual_seed(0)
    module = build(network_of("cifar", 20, size=32, width=64))
    for layer in module.modules():
        match layer:
            case nn.Conv2d():
                expected = math.sqrt(2 / (layer.out_channels * layer.kernel_size[0] ** 2))
                # n weights: the estimate's own standard deviation is 1 / sqrt(2 n) of it
                tolerance = 5 / math.sqrt(2 * layer.weight.numel())
                assert layer.weight.std().item() == pytest.approx(expected, rel=tolerance)
                assert layer.bias is None
            case nn.BatchNorm2d():
                assert layer.weight.eq(1).all()
                assert layer.bias.eq(0).all()
            case nn.Linear():
                assert layer.weight.abs().max() <= 1 / math.sqrt(layer.in_features)


@pytest.mark.parametrize("shortcut", ["none", "A", "B", "C"])
@pytest.mark.parametrize(("family", "depth", "size"), [("cifar", 8, 9), ("imagenet", 18, 33), ("imagenet", 50, 33)])
def test_gradients_reach_every_parameter(family: str, depth: int, size: int, shortcut: str) -> None:
    torch.manual_seed(0)
    module = build(network_of(family, depth, size=size, shortcut=shortcut, width=4))
    loss = F.cross_entropy(module(torch.randn(4, 3, size, size)), torch.arange(4))
    loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def block_of(module: ResNet, name: str) -> ResidualBlock:
    block = module.get_submodule(name)
    assert isinstance(block, ResidualBlock)
    return block


def tiny(shortcut: str, depth: int = 8) -> ResNet:
    torch.manual_seed(0)
    return build(network_of("cifar", depth, size=8, shortcut=shortcut, width=4)).eval()


def silence(block: ResidualBlock) -> None:
    """Make F(x) zero, so that the block's output is relu of what its shortcut gives."""
    assert isinstance(block, BasicBlock)
    nn.init.zeros_(block.bn2.weight)


def test_a_residual_block_adds_its_shortcut() -> None:
    block = block_of(tiny("A"), "layer1.0")
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), F.relu(block.residual(x) + x))
    silence(block)
    assert torch.equal(block(x), F.relu(x))


def test_a_plain_block_adds_nothing() -> None:
    block = block_of(tiny("none"), "layer1.0")
    x = torch.randn(2, 4, 8, 8)
    assert block.downsample is None
    assert torch.equal(block(x), F.relu(block.residual(x)))
    silence(block)
    assert block(x).eq(0).all()


def test_plain_and_option_a_have_the_same_weights() -> None:
    plain, residual = tiny("none").state_dict(), tiny("A").state_dict()
    assert plain.keys() == residual.keys()
    assert all(torch.equal(plain[name], residual[name]) for name in plain)


def test_option_a_subsamples_and_pads_with_zeros() -> None:
    block = block_of(tiny("A"), "layer2.0")
    assert isinstance(block.downsample, PadShortcut)
    assert not list(block.downsample.parameters())
    x = torch.randn(2, 4, 7, 7)
    y = block.downsample(x)
    assert y.shape == (2, 8, 4, 4)
    assert torch.equal(y[:, :4], x[:, :, ::2, ::2])
    assert y[:, 4:].eq(0).all()


def test_option_b_projects_only_where_the_shape_changes() -> None:
    module = tiny("B")
    assert isinstance(block_of(module, "layer1.0").downsample, nn.Identity)
    convolution, normalisation = block_of(module, "layer2.0").downsample  # type: ignore[misc]
    assert (convolution.kernel_size, convolution.stride) == ((1, 1), (2, 2))
    assert isinstance(normalisation, nn.BatchNorm2d)


def test_option_c_projects_everywhere() -> None:
    module = tiny("C", depth=14)
    assert all(
        isinstance(block.downsample, nn.Sequential) for block in module.modules() if isinstance(block, ResidualBlock)
    )


@pytest.mark.parametrize(("variant", "strided"), [("v1", "conv1"), ("v1.5", "conv2")])
def test_the_variant_says_which_convolution_strides(variant: str, strided: str) -> None:
    with torch.device("meta"):
        block = build(network_of("imagenet", 50, size=64, variant=variant)).get_submodule("layer3.0")
    strides = {name: block.get_submodule(name).stride for name in ("conv1", "conv2", "conv3")}
    assert strides == {name: (2, 2) if name == strided else (1, 1) for name in strides}


def by_hand(network: ResidualNetwork, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The papers' forward pass in evaluation mode, written once more from the description and the named weights."""

    def conv(layer: Conv, x: Tensor) -> Tensor:
        bias = weights[f"{layer.name}.bias"] if layer.bias else None
        return F.conv2d(x, weights[f"{layer.name}.weight"], bias, stride=layer.stride, padding=layer.kernel // 2)

    def bn(name: str, x: Tensor) -> Tensor:
        mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm_of(layer: Conv) -> str:
        # layer1.0.conv1 goes with layer1.0.bn1, and downsample.0 with downsample.1
        *parents, last = layer.name.split(".")
        return ".".join([*parents, "1" if last == "0" else last.replace("conv", "bn")])

    x = bn("bn1", conv(network.stem, x)).relu()
    if network.stem_pool:
        x = F.max_pool2d(x, 3, 2, 1)
    for block in itertools.chain.from_iterable(network.stages):
        if block.order == "pre":
            first = block.convs[0]
            shown = bn(norm_of(first), x).relu() if first.norm == "before" else x
            y = conv(first, shown)
            for layer in block.convs[1:]:
                y = conv(layer, bn(norm_of(layer), y).relu())
        else:
            shown = y = x
            for layer in block.convs:
                y = bn(norm_of(layer), conv(layer, y if layer is block.convs[0] else y.relu()))
            if len(block.convs) == 1:  # a highway's H ends with its relu
                y = y.relu()
        y = y * block.residual_scale * block.survival
        match block.shortcut:
            case "none":
                skip = torch.zeros_like(y)
            case "identity":
                skip = x
            case "pad":
                skip = torch.zeros_like(y)
                skip[:, : x.shape[1]] = x[:, :, :: block.stride, :: block.stride]
            case "projection":
                assert block.projection is not None
                skip = conv(block.projection, shown)
                skip = bn(norm_of(block.projection), skip) if block.order == "post" else skip
        if block.gate is not None:
            gate = 1 / (1 + torch.exp(-conv(block.gate, x)))
            skip = (1 - gate) * skip
            y = gate * y if block.gated == "both" else y
        y = y + block.shortcut_scale * skip
        x = y.relu() if block.order == "post" else y
    if network.last_norm:
        x = bn("norm", x).relu()
    return x.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]


def check_by_hand(network: Network) -> None:
    torch.manual_seed(0)
    assert isinstance(network, ResidualNetwork)
    module = build(network)
    x = torch.randn(4, 3, network.image_size, network.image_size)
    for _ in range(3):
        module(x)  # move the running statistics away from where they begin
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    module.eval()
    with torch.no_grad():
        expected = by_hand(network, module.state_dict(), x)
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shortcut", ["none", "A", "B", "C"])
@pytest.mark.parametrize(
    ("family", "depth", "size", "variant"),
    [("cifar", 14, 9, "v1"), ("imagenet", 18, 37, "v1"), ("imagenet", 50, 37, "v1"), ("imagenet", 50, 37, "v1.5")],
)
def test_the_forward_pass_is_the_papers(family: str, depth: int, size: int, variant: str, shortcut: str) -> None:
    check_by_hand(network_of(family, depth, size=size, shortcut=shortcut, variant=variant, width=4))


@pytest.mark.parametrize(
    "fields",
    [
        *({"shortcut": name} for name in ("exclusive-gating", "shortcut-gating", "scaling", "dropout", "highway")),
        *({"order": "pre", "shortcut": option} for option in "ABC"),
        *({"block": "bottleneck", "order": order, "depth": 20} for order in ("pre", "post")),
        {"tied": True, "step": 0.5, "depth": 20},
        {"survival": 0.5},
        {"shortcut": "highway", "gate_bias": 0.5},
        {"shortcut": "scaling", "residual_scale": 0.5, "shortcut_scale": 0.25},
    ],
    ids=str,
)
def test_the_forward_pass_of_relatives_is_their_papers(fields: dict[str, Any]) -> None:
    check_by_hand(network_of("cifar", **{"depth": 14, "size": 9, "width": 4, **fields}))


def test_larger_images_pass_too() -> None:
    assert tiny("A")(torch.randn(1, 3, 20, 12)).shape == (1, 10)


def test_a_dropped_block_leaves_its_shortcut_and_keeps_its_gradients() -> None:
    """Stochastic depth: in training F(x) is there or not, for the whole batch; its weights always have a gradient."""
    torch.manual_seed(0)
    block = block_of(build(network_of("cifar", 8, size=8, width=4, survival=0.01)), "layer3.0").train()
    x = torch.rand(2, 8, 8, 8)
    kept = 0
    for _ in range(20):
        y = block(x)
        kept += not torch.equal(y, F.relu(block.downsample(x)))  # type: ignore[misc]
    assert kept < 5
    block(x).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


def test_dropout_on_the_shortcut_is_one_of_training() -> None:
    block = block_of(tiny("dropout"), "layer1.0")
    silence(block)
    x = torch.rand(64, 4, 8, 8)
    assert torch.equal(block(x), x)
    y = block.train()(x)
    assert y.eq(0).double().mean() == pytest.approx(0.5, abs=0.05)
    assert torch.allclose(y[y > 0], 2 * x[y > 0])


def test_tied_blocks_learn_together_and_are_stored_once() -> None:
    torch.manual_seed(0)
    network = network_of("cifar", 20, size=8, width=4, tied=True)
    module = build(network)
    assert sum(tensor.numel() for tensor in module.parameters()) == network.parameters
    assert not [name for name in module.state_dict() if name.startswith("layer1.1")]
    F.cross_entropy(module(torch.randn(4, 3, 8, 8)), torch.arange(4)).backward()
    owner = module.get_submodule("layer1.0.conv1").weight  # type: ignore[union-attr]
    copied = copy.deepcopy(module)
    nn.init.zeros_(copied.get_submodule("layer1.0.conv2").weight)  # type: ignore[union-attr,arg-type]
    x = torch.rand(2, 4, 8, 8)
    assert torch.equal(copied.get_submodule("layer1.2")(x), x), "a copy's steps are the copy's own"
    assert owner.grad is not None  # type: ignore[union-attr]


def test_a_gates_bias_is_what_it_begins_with() -> None:
    module = build(network_of("cifar", 14, size=8, width=4, shortcut="highway", gate_bias=-3))
    gates = [layer for name, layer in module.named_modules() if name.endswith("gate")]
    assert gates
    assert all(layer.bias.eq(-3).all() for layer in gates)  # type: ignore[union-attr]
