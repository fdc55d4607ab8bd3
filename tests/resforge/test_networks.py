"""The networks as data: their published sizes, and the shape of the description itself."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resforge.networks import IMAGENET_BLOCKS, VGG_CONVS, Block, Conv, Network, ResidualNetwork, describe
from resforge.spec import ModelSpec
from tests.resforge.published import MILLIONS, ROWS, Row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_published_sizes(row: Row) -> None:
    assert row.network.parameters == row.parameters
    if row.macs is not None:
        digits = len(str(row.macs).split(".")[1])
        assert round(row.network.macs / row.unit, digits) == row.macs


def test_option_c_of_50_layers_is_about_the_papers_size() -> None:
    network = describe("imagenet", 50, shortcut="C", width=64, channels=3, classes=1000, image_size=224)
    assert round(network.parameters / 1e6, 1) == 40.1
    assert round(network.macs / 1e9, 2) == 6.32


@pytest.mark.parametrize(("fields", "millions"), MILLIONS, ids=lambda given: str(given))
def test_published_sizes_in_millions(fields: dict[str, object], millions: float) -> None:
    network = ModelSpec.model_validate(fields).network(channels=3, classes=10, image_size=32)
    assert round(network.parameters / 1e6, 1) == millions


@st.composite
def relatives(draw: st.DrawFn) -> Network:
    """What followed the paper: other orders and shortcuts, tied blocks, VGG."""
    family = draw(st.sampled_from(["cifar", "imagenet", "vgg"]))
    bottleneck = draw(st.booleans())
    fields: dict[str, object] = {"family": family, "width": draw(st.integers(1, 8))}
    if family == "vgg":
        fields |= {"depth": draw(st.sampled_from(list(VGG_CONVS))), "norm": draw(st.sampled_from(["batch", "none"]))}
    else:
        if family == "cifar":
            fields |= {"block": "bottleneck" if bottleneck else "basic"}
            fields["depth"] = (9 if bottleneck else 6) * draw(st.integers(1, 4)) + 2
        else:
            fields["depth"] = draw(st.sampled_from([50, 200] if bottleneck else [18, 34]))
        gates = ["exclusive-gating", "shortcut-gating", *([] if bottleneck else ["highway"])]
        fields |= draw(
            st.one_of(
                st.fixed_dictionaries({"shortcut": st.sampled_from(["scaling", "dropout", "conv1x1", *gates])}),
                st.fixed_dictionaries({"order": st.just("pre"), "shortcut": st.sampled_from("ABC")}),
                st.fixed_dictionaries({"tied": st.just(True), "shortcut": st.sampled_from("AB")}),
                st.fixed_dictionaries({"shortcut": st.sampled_from("ABC"), "survival": st.sampled_from([0.5, 0.9])}),
            )
        )
    model = ModelSpec.model_validate(fields)
    return model.network(
        channels=draw(st.integers(1, 3)), classes=draw(st.integers(2, 20)),
        image_size=draw(st.integers(32 if family == "imagenet" else 8, 48)),
    )  # fmt: skip


@st.composite
def networks(draw: st.DrawFn) -> ResidualNetwork:
    family = draw(st.sampled_from(["cifar", "imagenet"]))
    cifar = family == "cifar"
    depth = 6 * draw(st.integers(1, 6)) + 2 if cifar else draw(st.sampled_from(list(IMAGENET_BLOCKS)))
    network = describe(
        family,
        depth,
        shortcut=draw(st.sampled_from(["none", "A", "B", "C"])),
        variant=draw(st.sampled_from(["v1", "v1.5"])) if not cifar and depth >= 50 else "v1",
        width=draw(st.integers(1, 32)),
        channels=draw(st.integers(1, 3)),
        classes=draw(st.integers(2, 20)),
        image_size=draw(st.integers(8 if cifar else 32, 70)),
    )
    assert isinstance(network, ResidualNetwork)
    return network


def _blocks(network: Network) -> list[Block]:
    assert isinstance(network, ResidualNetwork)
    return [block for stage in network.stages for block in stage]


@settings(deadline=None)
@given(networks())
def test_depth_counts_the_weighted_layers(network: Network) -> None:
    """The paper's depth: convolutions but for projections, and the classifier."""
    inside = [conv for block in _blocks(network) for conv in block.convs]
    assert 1 + len(inside) + 1 == network.depth


@settings(deadline=None)
@given(relatives())
def test_depth_counts_the_weighted_layers_of_relatives(network: Network) -> None:
    """Gates count as little as projections; blocks that share their weights count each."""
    if isinstance(network, ResidualNetwork):
        inside = [conv for block in _blocks(network) for conv in block.convs]
        assert 1 + len(inside) + 1 == network.depth
    else:
        assert sum(1 for layer in network.layers()) == network.depth


@settings(deadline=None)
@given(relatives())
def test_a_name_stands_for_one_layer(network: Network) -> None:
    by_name: dict[str, object] = {}
    for layer in network.layers():
        assert by_name.setdefault(layer.name, layer) == layer
    assert list(by_name)[-1] == network.head


def _of(**fields: object) -> ResidualNetwork:
    network = ModelSpec.model_validate({"family": "cifar", "depth": 14, **fields}).network(
        channels=3, classes=10, image_size=32
    )
    assert isinstance(network, ResidualNetwork)
    return network


def test_pre_activation_has_the_weights_of_post_activation() -> None:
    """One batch norm less, the first's, and one more behind the last block (He et al. 2016, section 4.1)."""
    post, pre = _of(), _of(order="pre")
    assert (pre.parameters, pre.macs) == (post.parameters, post.macs)
    assert [conv.norm for conv in _blocks(pre)[0].convs] == ["none", "before"]
    assert {conv.norm for block in _blocks(pre)[1:] for conv in block.convs} == {"before"}


def test_gates_begin_with_their_bias() -> None:
    assert {block.gate_bias for block in _blocks(_of(shortcut="shortcut-gating"))} == {-6.0}
    assert {block.gate_bias for block in _blocks(_of(shortcut="highway", gate_bias=-1)) if block.gate} == {-1.0}
    kernels = {name: _blocks(_of(shortcut=name))[0].gate for name in ("exclusive-gating", "highway")}
    assert {name: gate.kernel for name, gate in kernels.items() if gate} == {"exclusive-gating": 1, "highway": 3}


def test_survival_falls_linearly_from_one() -> None:
    """Huang et al. 2016, equation 4."""
    chances = [block.survival for block in _blocks(_of(depth=20, survival=0.5))]
    assert chances == pytest.approx([1 - number / 9 * 0.5 for number in range(1, 10)])


def test_tied_blocks_are_one_in_each_stage() -> None:
    tied, free = _of(depth=20, tied=True, step=0.25), _of(depth=20, order="pre")
    assert [block.shares for block in _blocks(tied)] == [
        None, "layer1.0", "layer1.0", None, None, "layer2.1", None, None, "layer3.1"
    ]  # fmt: skip
    assert tied.macs == free.macs
    assert tied.parameters < free.parameters
    assert {block.residual_scale for block in _blocks(tied) if not block.changes_shape} == {0.25}
    more = _of(depth=26, tied=True)
    assert more.parameters == tied.parameters


def test_vgg_pools_down_to_one_pixel() -> None:
    network = ModelSpec.model_validate({"family": "vgg", "depth": 11}).network(channels=1, classes=10, image_size=8)
    assert [layer.size for layer in network.layers() if isinstance(layer, Conv)] == [8, 4, 2, 2, 1, 1, 1, 1]


@settings(deadline=None)
@given(networks())
def test_channels_and_sizes_fit_together(network: ResidualNetwork) -> None:
    channels, size = network.stem.out_channels, network.stem.size
    if network.stem_pool:
        size = (size + 1) // 2
    for block in _blocks(network):
        for conv in block.convs:
            assert conv.in_channels == channels
            assert conv.size == (size + conv.stride - 1) // conv.stride
            channels, size = conv.out_channels, conv.size
        if block.projection:
            projection = block.projection
            assert (projection.in_channels, projection.out_channels) == (block.in_channels, block.out_channels)
            assert (projection.size, projection.stride) == (size, block.stride)
    assert network.features == channels


@settings(deadline=None)
@given(networks())
def test_names_are_unique(network: Network) -> None:
    names = [conv.name for conv in network.convs()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("none", {"none"}),
        ("A", {"identity", "pad"}),
        ("B", {"identity", "projection"}),
        ("C", {"projection"}),
    ],
)
def test_shortcut_options(option: str, expected: set[str]) -> None:
    network = describe("cifar", 20, shortcut=option, width=16, channels=3, classes=10, image_size=32)
    assert {block.shortcut for block in _blocks(network)} == expected
    changed = [block.name for block in _blocks(network) if block.shortcut in ("pad", "projection")]
    if option in ("A", "B"):
        assert changed == ["layer2.0", "layer3.0"]


@pytest.mark.parametrize(("variant", "strides"), [("v1", [2, 1, 1]), ("v1.5", [1, 2, 1])])
def test_where_a_bottleneck_strides(variant: str, strides: list[int]) -> None:
    network = describe("imagenet", 50, shortcut="B", variant=variant, width=64, channels=3, classes=10, image_size=224)
    assert [conv.stride for conv in network.stages[1][0].convs] == strides
    assert [conv.size for conv in network.stages[1][0].convs] == ([28, 28, 28] if variant == "v1" else [56, 28, 28])


@pytest.mark.parametrize(("family", "depth", "size", "least"), [("cifar", 20, 7, "8x8"), ("imagenet", 18, 31, "32x32")])
def test_too_small_images_are_refused(family: str, depth: int, size: int, least: str) -> None:
    with pytest.raises(ValueError, match=f"{least} pixels or more, not {size}"):
        describe(family, depth, shortcut="A", width=16, channels=3, classes=10, image_size=size)
