"""Identity blocks appended to a trained network: the same logits to the last bit in evaluation mode."""

import pytest
import torch
from torch.nn import functional as F

from resforge.spec import ModelSpec
from tests.trainer.models.test_residual import network_of
from trainer.models import build
from trainer.models.grow import grow
from trainer.models.residual import ResNet

pytestmark = pytest.mark.stack  # some seconds of building and training networks, a dozen of them


def trained(shortcut: str, depth: int, seed: int, family: str = "cifar") -> tuple[ResNet, torch.Tensor]:
    """A network after some steps, so that its statistics are no longer those of the beginning."""
    torch.manual_seed(seed)
    module = build(network_of(family, depth, size=32, shortcut=shortcut, width=4))
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    for _ in range(3):
        F.cross_entropy(module(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return module.eval(), images


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("family", "shallow", "deep", "shortcut"),
    [("cifar", 8, 20, "A"), ("cifar", 8, 20, "B"), ("cifar", 8, 20, "none"), ("imagenet", 18, 34, "B")],
)
def test_the_logits_stay_bitwise_equal(family: str, shallow: int, deep: int, shortcut: str, seed: int) -> None:
    module, images = trained(shortcut, shallow, seed, family)
    before, after = (network_of(family, depth, size=32, shortcut=shortcut, width=4) for depth in (shallow, deep))
    grown = build(after)
    grown.load_state_dict(grow(module.state_dict(), before, after))
    with torch.no_grad():
        assert torch.equal(grown.eval()(images), module(images))
        # In training mode only a residual network's stay equal: a plain block meets other statistics.
        same = torch.equal(grown.train()(images), module.train()(images))
    assert same == (shortcut != "none")


@pytest.mark.parametrize("fields", [{"order": "pre"}, {"block": "bottleneck"}], ids=str)
def test_relatives_grow_too(fields: dict[str, str]) -> None:
    before, after = (
        ModelSpec.model_validate({"family": "cifar", "depth": depth, "width": 4, **fields}).network(
            channels=3, classes=10, image_size=32
        )
        for depth in ((11, 29) if fields.get("block") else (8, 20))
    )
    torch.manual_seed(0)
    module, images = build(before), torch.randn(8, 3, 32, 32)
    module(images)  # moves the running statistics
    grown = build(after)
    grown.load_state_dict(grow(module.state_dict(), before, after))
    with torch.no_grad():
        assert torch.equal(grown.eval()(images), module.eval()(images))


@pytest.mark.parametrize(
    ("shallow", "deep", "said"),
    [
        (("cifar", 20, "A"), ("cifar", 8, "A"), "does not begin as"),
        (("cifar", 8, "A"), ("cifar", 20, "B"), "does not begin as"),
        (("cifar", 8, "C"), ("cifar", 20, "C"), "its shortcut is projection"),
        (("imagenet", 50, "none"), ("imagenet", 101, "none"), "it narrows"),
        (("cifar", 8, "exclusive-gating"), ("cifar", 20, "exclusive-gating"), "weighs its shortcut"),
        (("vgg", 11, "none"), ("vgg", 13, "none"), "only networks of blocks grow"),
        (("cifar", 8, "A"), ("imagenet", 18, "A"), "the same family"),
    ],
)
def test_what_does_not_grow_is_refused(shallow: tuple[str, int, str], deep: tuple[str, int, str], said: str) -> None:
    before, after = (network_of(f, d, size=32, shortcut=s, width=4) for f, d, s in (shallow, deep))
    with pytest.raises(ValueError, match=said):
        grow({}, before, after)
