"""Weights in files, and VGG's names: torchvision's, both ways."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.trainer.models.test_residual import network_of
from trainer.models import build
from trainer.models.weights import load_weights, read_weights, write_weights

# Where torchvision's VGG networks have their convolutions within `features`.
FEATURES = {
    (11, "none"): (0, 3, 6, 8, 11, 13, 16, 18),
    (16, "none"): (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    (16, "batch"): (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40),
    (19, "none"): (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34),
    (19, "batch"): (0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49),
}
BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize(("depth", "norm"), FEATURES)
def test_vgg_names_are_torchvisions(depth: int, norm: str) -> None:
    with torch.device("meta"):
        state = build(network_of("vgg", depth, size=224, classes=1000, norm=norm)).state_dict()
    names = []
    for place in FEATURES[depth, norm]:
        names += [f"features.{place}.weight", f"features.{place}.bias"]
        names += [f"features.{place + 1}.{name}" for name in BN] if norm == "batch" else []
    for place in (0, 3, 6):
        names += [f"classifier.{place}.weight", f"classifier.{place}.bias"]
    assert list(state) == names
    assert state["features.0.weight"].shape == (64, 3, 3, 3)
    assert state["classifier.0.weight"].shape == (4096, 512 * 7 * 7)
    assert state["classifier.6.weight"].shape == (1000, 4096)


@pytest.mark.parametrize("size", [8, 33, 64])
def test_a_vgg_network_takes_images_of_any_size(size: int) -> None:
    module = build(network_of("vgg", 16, size=32, width=2)).eval()
    assert module(torch.randn(2, 3, size, size + 3)).shape == (2, 10)


def state_of(seed: int, **fields: object) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return build(network_of("imagenet", 18, size=32, width=4, **fields)).state_dict()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_pass_through_files(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    one, other = (build(network_of("imagenet", 18, size=32, width=4)) for _ in range(2))
    write_weights(one, tmp_path / f"weights{suffix}")
    load_weights(other, read_weights(tmp_path / f"weights{suffix}"))
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_files_from_before_batches_were_counted_load() -> None:
    """As torchvision's first ResNets are."""
    module = build(network_of("imagenet", 18, size=32, width=4))
    weights = {name: tensor for name, tensor in state_of(7).items() if not name.endswith("num_batches_tracked")}
    load_weights(module, weights)
    assert torch.equal(module.state_dict()["conv1.weight"], weights["conv1.weight"])


def test_other_weights_are_refused_whole() -> None:
    module = build(network_of("imagenet", 18, size=32, width=4))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    weights = state_of(3, classes=12)
    weights["fc.extra"] = weights.pop("bn1.weight")
    with pytest.raises(
        ValueError, match=r"bn1\.weight is missing; fc\.extra is unknown; fc\.weight is 12x32 instead of 10x"
    ):
        load_weights(module, weights)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "list.pth"])
def test_other_files_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "list.pth":
        torch.save([torch.zeros(1)], path)
    else:
        path.write_bytes(b"no weights at all, as anybody can see")
    with pytest.raises(ValueError, match=r"is no safetensors file|holds no state dict") as refused:
        read_weights(path)
    assert "weights_only" not in str(refused.value), "nobody is told to run what is in the file"


def test_a_safetensors_file_is_read_by_its_ending(tmp_path: Path) -> None:
    save_file({"a": torch.arange(3)}, tmp_path / "a.safetensors")
    assert read_weights(tmp_path / "a.safetensors")["a"].tolist() == [0, 1, 2]
