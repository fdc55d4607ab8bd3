"""The learning rate over the steps, and what decays."""

import pytest
import torch
from torch import nn

from resforge import recipes
from resforge.spec import ModelSpec, OptimSpec
from trainer.models import build
from trainer.optim import build_optimizer, learning_rate
from trainer.schedule import ScheduleState


def _optim(**schedule: object) -> OptimSpec:
    return OptimSpec.model_validate({"lr": 0.1, "schedule": schedule})


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.1), (31_999, 0.1), (32_000, 0.01), (47_999, 0.01), (48_000, 0.001), (63_999, 0.001)]
)
def test_the_papers_cifar_schedule(step: int, rate: float) -> None:
    optim = recipes.get("cifar10/resnet-56").spec.optim
    assert learning_rate(optim, step, 64_000) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("step", "warm_at", "rate"), [(0, None, 0.01), (5000, None, 0.01), (399, 400, 0.01), (400, 400, 0.1)]
)
def test_110_layers_begin_at_a_tenth_until_the_error_falls(step: int, warm_at: int | None, rate: float) -> None:
    optim = recipes.get("cifar10/resnet-110").spec.optim
    assert learning_rate(optim, step, 64_000, ScheduleState(warm_at=warm_at)) == pytest.approx(rate)


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


def _network() -> nn.Module:
    torch.manual_seed(0)
    model = ModelSpec.model_validate({"family": "cifar", "depth": 8, "width": 4, "shortcut": "B"})
    return build(model.network(channels=3, classes=10, image_size=8))


def test_everything_decays_as_in_the_paper() -> None:
    network = _network()
    (group,) = build_optimizer(_optim(), network).param_groups
    assert group["weight_decay"] == 1e-4
    assert list(map(id, group["params"])) == list(map(id, network.parameters()))


def test_norm_and_bias_may_be_left_from_decay() -> None:
    network = _network()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decayed, spared = build_optimizer(OptimSpec(decay_norm_and_bias=False), network).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-4, 0)
    norms = {name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    expected = {f"{norm}.{of}" for norm in norms for of in ("weight", "bias")} | {"fc.bias"}
    assert {names[id(parameter)] for parameter in spared["params"]} == expected
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_only_what_has_a_gradient_is_trained() -> None:
    network = _network()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith("fc."))
    assert [len(group["params"]) for group in build_optimizer(_optim(), network).param_groups] == [2]
    spared = build_optimizer(OptimSpec(decay_norm_and_bias=False), network).param_groups
    assert [len(group["params"]) for group in spared] == [1, 1]
