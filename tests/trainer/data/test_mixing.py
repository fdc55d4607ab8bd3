"""Mixup and cutmix: who is mixed with whom, by what weights, and what comes of images and labels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from resforge.spec import RegularisationSpec
from trainer.data.mixing import Mix, draw_mix, mix_images, mixed_loss, mixes
from trainer.data.sampler import mixing_dice

MIXUP, CUTMIX = RegularisationSpec(mixup=0.2), RegularisationSpec(cutmix=1)
BOTH = RegularisationSpec(mixup=0.8, cutmix=1)
ALPHAS = st.floats(0.05, 20)


def drawn(spec: RegularisationSpec, step: int, *, seed: int = 0, rank: int = 0, count: int = 6, size: int = 8) -> Mix:
    return draw_mix(spec, mixing_dice(seed, step, rank), count, size)


def test_nothing_is_mixed_unless_asked_for() -> None:
    assert [mixes(spec) for spec in (RegularisationSpec(), MIXUP, CUTMIX, BOTH)] == [False, True, True, True]


@settings(deadline=None)
@given(ALPHAS, ALPHAS, st.integers(0, 1000), st.integers(1, 9), st.integers(1, 40))
def test_shares_are_those_of_the_pixels(mixup: float, cutmix: float, step: int, count: int, size: int) -> None:
    mix = drawn(RegularisationSpec(mixup=mixup, cutmix=cutmix), step, count=count, size=size)
    assert sorted(mix.partners) == list(range(count))
    assert 0 <= mix.weight <= 1
    images = torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(count, 2, size, size)
    mixed = mix_images(images, mix)
    expected = mix.weight * np.arange(count) + (1 - mix.weight) * mix.partners
    np.testing.assert_allclose(mixed.mean((1, 2, 3)), expected, atol=1e-4)
    if mix.box is not None:  # every pixel is one image's or the other's
        for image, own, partner in zip(mixed, range(count), mix.partners, strict=True):
            assert set(image.unique().tolist()) <= {own, partner}


def test_a_step_is_mixed_alike_when_it_is_repeated_and_unlike_elsewhere() -> None:
    def key(mix: Mix) -> tuple[object, ...]:
        return (*mix.partners.tolist(), mix.weight, mix.box)

    assert key(drawn(BOTH, 5)) == key(drawn(BOTH, 5))
    others = [drawn(BOTH, 5), drawn(BOTH, 6), drawn(BOTH, 5, rank=1), drawn(BOTH, 5, seed=1)]
    assert len({key(mix) for mix in others}) == 4


def test_a_coin_decides_between_both() -> None:
    pasted = sum(drawn(BOTH, step).box is not None for step in range(2000))
    assert 900 < pasted < 1100
    assert all(drawn(MIXUP, step).box is None for step in range(20))
    assert all(drawn(CUTMIX, step).box is not None for step in range(20))


def test_weights_are_of_the_beta_distribution() -> None:
    weights = np.array([drawn(MIXUP, step).weight for step in range(4000)])
    assert weights.mean() == pytest.approx(0.5, abs=0.03)
    assert weights.var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.01)


def test_memory_keeps_its_order_and_images_their_pixels() -> None:
    images = torch.rand(4, 3, 8, 8).to(memory_format=torch.channels_last)
    before = images.clone()
    for mix in (Mix(np.array([1, 0, 3, 2]), 0.3), Mix(np.array([1, 0, 3, 2]), 0.75, (0, 0, 4, 4))):
        assert mix_images(images, mix).is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(images, before)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_the_loss_is_that_with_mixed_targets(weight: float, smoothing: float) -> None:
    logits, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    mix = Mix(np.array([1, 2, 3, 0]), weight)
    loss, dominant = mixed_loss(logits, labels, mix, label_smoothing=smoothing)
    partners = torch.tensor([1, 2, 3, 0])
    targets = weight * functional.one_hot(labels, 5) + (1 - weight) * functional.one_hot(partners, 5)
    expected = functional.cross_entropy(logits, targets, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    assert torch.equal(dominant, labels if weight >= 0.5 else partners)
