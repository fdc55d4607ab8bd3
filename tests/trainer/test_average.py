"""The moving average of weights: its arithmetic, and that the network's own are back to the last bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainer.average import WeightAverage


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def move(module: nn.Module) -> None:
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(1)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.01, 0.9999), st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=30))
def test_it_is_what_it_is_said_to_be(decay: float, weights: list[float]) -> None:
    one = nn.Linear(1, 1, bias=False).double()
    average = WeightAverage(one, decay)
    expected = one.weight.item()
    for step, weight in enumerate(weights, start=1):
        nn.init.constant_(one.weight, weight)
        average.update(step)
        kept = min(decay, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * weight
    assert average.state_dict()["weight"].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert one.weight.item() == weights[-1]


def test_weights_that_stay_are_their_own_average() -> None:
    module = network()
    average = WeightAverage(module, 0.9)
    for step in range(1, 50):
        average.update(step)
    assert all(torch.equal(value, own) for value, own in zip(average.values, module.parameters(), strict=True))


def test_the_average_is_there_within_and_the_networks_own_behind() -> None:
    module = network()
    average = WeightAverage(module, 0.9)
    move(module)
    average.update(1)
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    kept = average.state_dict()
    with average.applied():
        inside = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert all(torch.equal(own[name], tensor) for name, tensor in module.state_dict().items())
    buffers = {name for name, _ in module.named_buffers()}
    for name, tensor in inside.items():
        assert torch.equal(tensor, kept[name])
        assert torch.equal(tensor, own[name]) == (name in buffers), "statistics are the network's"


def test_it_goes_on_from_what_was_kept() -> None:
    first, second = network(), network()
    averages = [WeightAverage(first, 0.9), WeightAverage(second, 0.9)]
    move(first)
    averages[0].update(1)
    second.load_state_dict(first.state_dict())
    averages[1].restart(averages[0].state_dict())
    for module, average in zip((first, second), averages, strict=True):
        move(module)
        average.update(2)
    assert all(torch.equal(a, b) for a, b in zip(averages[0].values, averages[1].values, strict=True))


def test_weights_that_blocks_share_are_averaged_once() -> None:
    module = network()
    shared = nn.ModuleList([module, module])
    average = WeightAverage(shared, 0.9)
    move(module)
    average.update(1)
    state = average.state_dict()
    assert torch.equal(state["0.0.weight"], state["1.0.weight"])
    average.restart(state)
    assert torch.equal(average.state_dict()["0.0.weight"], state["0.0.weight"])
