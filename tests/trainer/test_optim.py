"""The learning rate over the steps."""

import pytest

from resforge import recipes
from resforge.spec import OptimSpec
from trainer.optim import learning_rate


def _optim(**schedule: object) -> OptimSpec:
    return OptimSpec.model_validate({"lr": 0.1, "schedule": schedule})


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.1), (31_999, 0.1), (32_000, 0.01), (47_999, 0.01), (48_000, 0.001), (63_999, 0.001)]
)
def test_the_papers_cifar_schedule(step: int, rate: float) -> None:
    optim = recipes.get("cifar10/resnet-56").spec.optim
    assert learning_rate(optim, step, 64_000) == pytest.approx(rate)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.01), (399, 0.01), (400, 0.1)])
def test_110_layers_begin_at_a_tenth(step: int, rate: float) -> None:
    optim = recipes.get("cifar10/resnet-110").spec.optim
    assert learning_rate(optim, step, 64_000) == pytest.approx(rate)


def test_a_ramp_reaches_the_full_rate_and_a_cosine_falls_to_nothing() -> None:
    optim = _optim(kind="cosine", warmup_steps=10)
    rates = [learning_rate(optim, step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[9] == rates[10] == pytest.approx(0.1)
    assert rates[60] == pytest.approx(0.05)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 1e-4


def test_a_constant_stays() -> None:
    assert {learning_rate(_optim(kind="constant"), step, 50) for step in range(50)} == {0.1}
