"""The networks as data: their published sizes, and the shape of the description itself."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resforge.networks import IMAGENET_BLOCKS, Block, Network, describe
from tests.resforge.published import ROWS, Row


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


@st.composite
def networks(draw: st.DrawFn) -> Network:
    family = draw(st.sampled_from(["cifar", "imagenet"]))
    cifar = family == "cifar"
    depth = 6 * draw(st.integers(1, 6)) + 2 if cifar else draw(st.sampled_from(list(IMAGENET_BLOCKS)))
    return describe(
        family,
        depth,
        shortcut=draw(st.sampled_from(["none", "A", "B", "C"])),
        variant=draw(st.sampled_from(["v1", "v1.5"])) if not cifar and depth >= 50 else "v1",
        width=draw(st.integers(1, 32)),
        channels=draw(st.integers(1, 3)),
        classes=draw(st.integers(2, 20)),
        image_size=draw(st.integers(8 if cifar else 32, 70)),
    )


def _blocks(network: Network) -> list[Block]:
    return [block for stage in network.stages for block in stage]


@settings(deadline=None)
@given(networks())
def test_depth_counts_the_weighted_layers(network: Network) -> None:
    """The paper's depth: convolutions but for projections, and the classifier."""
    inside = [conv for block in _blocks(network) for conv in block.convs]
    assert 1 + len(inside) + 1 == network.depth


@settings(deadline=None)
@given(networks())
def test_channels_and_sizes_fit_together(network: Network) -> None:
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
