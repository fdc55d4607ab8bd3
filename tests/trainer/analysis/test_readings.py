"""Readings of small trained networks, held against what can be worked out by other ways."""

import copy
import json
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn
from torch.nn import functional as F

from resforge.spec.readings import READINGS, Reading
from tests.trainer.analysis.conftest import subject_of
from trainer.analysis import SOURCES, read
from trainer.analysis.common import first_batch, measure
from trainer.analysis.paths import gradient_along
from trainer.analysis.subject import Outcome, Subject, here
from trainer.errors import Unreadable
from trainer.models import ResNet

READING: TypeAdapter[Any] = TypeAdapter(Reading)
SMALL: dict[str, dict[str, Any]] = {
    "lesions": {"most": 2, "draws": 2, "swaps": 2},
    "landscape": {"points": 3},
    "smoothing": {"batch": 16, "batches": 2, "steps": 3},
    "gradients": {"batch": 32},
    "paths": {"batch": 16, "draws": 2},
    "ode": {"levels": 1},
}

pytestmark = pytest.mark.stack  # half a minute of training and drawing


def take(subject: Subject, name: str, spread: Any = here, **fields: Any) -> Outcome:
    told: list[tuple[int, int]] = []
    before = copy.deepcopy(subject.network.state_dict())
    reading = READING.validate_python({"name": name, **SMALL.get(name, {}), **fields})
    outcome = read(reading, subject, progress=lambda done, total: told.append((done, total)), spread=spread)
    assert told[-1][0] == told[-1][1], "progress ends where the work does"
    after = subject.network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before), "the network is left as it is"
    return outcome


def check(outcome: Outcome) -> None:
    assert set(outcome.values) == set(outcome.units)
    json.dumps(outcome.values, allow_nan=False)
    for picture in outcome.pictures.values():
        assert picture.startswith(b"\x89PNG")
    assert outcome.pictures


@pytest.mark.parametrize("name", READINGS)
def test_every_reading_gives_figures_a_picture_and_units(name: str, residual: Subject) -> None:
    check(take(residual, name))
    assert SOURCES[name]


# What is refused, by reading; all else is read.
REFUSED: dict[str, dict[str, str]] = {
    "plain": {"paths": "no shortcut", "ode": r"layer1\.0 has no shortcut"},
    "highway": {"paths": "no shortcut", "ode": r"layer1\.0 weighs its shortcut"},
    "exclusive-gating": {"ode": r"layer1\.0 weighs its shortcut"},
    "scaling": {"ode": r"layer1\.0 weighs its shortcut"},
    "vgg": dict.fromkeys(("gradients", "lesions", "paths", "ode"), "has no blocks")
    | {"smoothing": "no batch normalisation"},
}
OTHERS: dict[str, dict[str, object]] = {
    "plain": {"shortcut": "none"},
    "highway": {"shortcut": "highway"},
    "exclusive-gating": {"shortcut": "exclusive-gating"},
    "scaling": {"shortcut": "scaling"},
    "dropout": {"shortcut": "dropout"},
    "preact": {"order": "pre", "shortcut": "B"},
    "bottleneck": {"order": "pre", "block": "bottleneck", "depth": 20, "width": 4},
    "tied": {"tied": True, "depth": 20},
    "stochastic": {"survival": 0.5},
    "vgg": {"family": "vgg", "depth": 11, "width": 2},
}


@pytest.fixture(scope="module", params=OTHERS)
def other(request: pytest.FixtureRequest) -> tuple[str, Subject]:
    return request.param, subject_of(steps=3, **OTHERS[request.param])


@pytest.mark.parametrize("name", READINGS)
def test_every_network_is_read_or_refused(name: str, other: tuple[str, Subject]) -> None:
    kind, subject = other
    refusal = REFUSED.get(kind, {}).get(name)
    if refusal is None:
        check(take(subject, name))
    else:
        with pytest.raises(Unreadable, match=refusal):
            take(subject, name)


@pytest.mark.parametrize("name", ["lesions", "landscape"])
def test_the_seed_decides(name: str, residual: Subject) -> None:
    first = take(residual, name)
    assert take(residual, name).values == first.values
    assert take(replace(residual, seed=5), name).values != first.values


def test_a_response_is_the_deviation_behind_the_batch_norm(residual: Subject) -> None:
    seen: list[torch.Tensor] = []
    block = residual.network.get_submodule("layer2.0")
    handle = block.bn1.register_forward_hook(lambda _m, _i, out: seen.append(out))  # type: ignore[union-attr]
    with torch.no_grad():
        residual.network(first_batch(residual, len(residual.images))[0])
    handle.remove()
    values = take(residual, "responses").values
    found = dict(zip(values["layers"], values["std"], strict=True))
    assert len(found) == 13
    assert found["layer2.0.conv1"] == pytest.approx(float(seen[0].double().std(correction=0)), rel=1e-4)


def test_the_parts_of_a_gradient_are_those_of_the_block(residual: Subject) -> None:
    """Of the last block: g at the sum is known in closed form, so both parts can be taken by themselves."""
    values = take(residual, "gradients").values
    images, labels = first_batch(residual, 32)
    network = copy.deepcopy(residual.network).train()
    block = network.get_submodule("layer3.1")
    kept: list[torch.Tensor] = []
    block.register_forward_pre_hook(lambda _m, inputs: kept.append(inputs[0].detach()))
    network(images)
    x = kept[0].requires_grad_()
    total = block.residual(x) + x  # type: ignore[operator]
    loss = F.cross_entropy(network.get_submodule("fc")(F.relu(total).mean((2, 3))), labels)
    [g] = torch.autograd.grad(loss, total, retain_graph=True)
    [whole] = torch.autograd.grad(loss, x, retain_graph=True)
    row = values["trained"][-1]
    assert row["shortcut"] == pytest.approx(float(g.norm()), rel=1e-3)
    assert row["residual"] == pytest.approx(float((whole - g).norm()), rel=1e-3)
    assert row["input"] == pytest.approx(float(whole.norm()), rel=1e-3)


def test_a_plain_block_has_no_part_through_a_shortcut(plain: Subject) -> None:
    row = take(plain, "gradients").values["trained"][2]
    assert row["shortcut"] is None
    assert row["residual"] == pytest.approx(row["input"], rel=1e-5)


def test_nothing_has_travelled_at_initialisation(residual: Subject) -> None:
    values = take(replace(residual, network=residual.initial().eval()), "travel").values
    assert set(values["travel"]) == set(values["block_travel"]) == {0.0}
    moved = take(residual, "travel").values
    assert all(distance > 0 for distance in moved["travel"])
    # A residual block becomes an identity when its last batch norm's weights, ones, go to zero.
    channels = [residual.network.get_submodule(name).bn2.weight.numel() for name in moved["blocks"]]  # type: ignore[union-attr]
    assert moved["identity"] == pytest.approx([count**0.5 for count in channels])


def test_a_deleted_block_leaves_its_shortcut(residual: Subject) -> None:
    network = copy.deepcopy(residual.network)
    block = network.get_submodule("layer3.1")
    nn.init.zeros_(block.bn2.weight)  # type: ignore[union-attr,arg-type]
    nn.init.zeros_(block.bn2.bias)  # type: ignore[union-attr,arg-type]
    values = take(residual, "lesions", blocks=["layer3.1"], most=0, swaps=0).values
    assert values["deleted"] == {"layer3.1": measure(network, residual)[1]}
    assert values["error"] == measure(residual.network, residual)[1] < 0.5


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (["conv1"], "'conv1', which is no block that can be deleted; accepted are layer1.0"),
        (["layer2.0"], "'layer2.0', a plain block that changes the shape"),
        (["layer9.0"], "'layer9.0', which is no block"),
    ],
)
def test_a_lesion_that_can_not_be_is_refused(blocks: list[str], said: str, plain: Subject) -> None:
    with pytest.raises(Unreadable, match=said):
        take(plain, "lesions", blocks=blocks)


def test_the_gradients_of_all_paths_add_up_to_the_whole(residual: Subject) -> None:
    """Of the last two blocks, four paths: their gradients, as vectors, sum to the network's own."""
    network = copy.deepcopy(residual.network)
    network.stages = ("layer3",)  # type: ignore[assignment]
    network.layer3 = network.layer3[1:]  # type: ignore[index]
    assert isinstance(network, ResNet)
    x = torch.rand(8, 32, 2, 2)
    labels = torch.arange(8)
    network.stem = lambda images: images  # type: ignore[method-assign,assignment]
    count = len(network.blocks())
    assert count == 1
    found = [gradient_along(network, set(through), x, labels) for through in ((), (0,))]
    whole = x.clone().requires_grad_()
    [expected] = torch.autograd.grad(F.cross_entropy(network.head(network.layer3(whole)), labels), whole)
    torch.testing.assert_close(sum(found), expected)


def test_shares_of_the_gradient_are_counts_times_norms(residual: Subject) -> None:
    values = take(residual, "paths").values
    assert sum(values["paths"]) == pytest.approx(1)
    assert values["paths"][1] == 6 / 2**6
    weighted = [share * norm for share, norm in zip(values["paths"], values["norm"], strict=True)]
    assert values["gradient"] == pytest.approx([weight / sum(weighted) for weight in weighted])
    low, high = values["most_of_the_gradient"]
    assert 0.9 <= sum(values["gradient"][low : high + 1]) <= 1 + 1e-9


def test_steps_of_the_networks_own_size_change_nothing(residual: Subject) -> None:
    values = take(residual, "ode", levels=2).values
    assert values["step"] == [0.25, 0.5, 1.0, 2.0, 4.0]
    # 6 blocks, two of which change the shape and stay as they are.
    assert values["blocks"] == [18, 10, 6, 5, 5]
    middle = values["step"].index(1.0)
    assert values["logits_change"][middle] == 0
    assert values["error"][middle] == measure(residual.network, residual)[1]
    assert all(change > 0 for change in values["logits_change"][:middle])
    assert len(values["residual_to_input"]) == 4


def test_halving_the_steps_of_a_linear_flow_halves_what_is_left(residual: Subject) -> None:
    """With small F the change is of first order in the step: each further halving adds half of what the last did."""
    network = copy.deepcopy(residual.network)
    with torch.no_grad():
        for _, block in network.blocks():  # type: ignore[operator]
            block.bn2.weight.mul_(0.01)
            block.bn2.bias.mul_(0.01)
    values = take(replace(residual, network=network), "ode", levels=3).values
    by_step = dict(zip(values["step"], values["logits_change"], strict=True))
    assert by_step[0.5] < by_step[0.25] < by_step[0.125]
    further = (by_step[0.125] - by_step[0.25]) / (by_step[0.25] - by_step[0.5])
    assert further == pytest.approx(0.5, abs=0.1)


def test_the_middle_of_a_landscape_is_the_network(residual: Subject) -> None:
    values = take(residual, "landscape", points=5, span=0.5).values
    assert values["coordinates"] == [-0.5, -0.25, 0.0, 0.25, 0.5]
    assert values["loss"][2][2] == pytest.approx(values["centre_loss"], rel=1e-6)
    with pytest.raises(Unreadable, match="odd number"):
        take(residual, "landscape", points=4)


def test_a_landscape_travels_to_other_processes(residual: Subject) -> None:
    def elsewhere(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        shipped = pickle.loads(pickle.dumps(function))
        return map(shipped, items)

    assert take(residual, "landscape", spread=elsewhere).values == take(residual, "landscape").values


def test_with_and_without_batch_norm_begin_at_the_same_loss(residual: Subject) -> None:
    values = take(residual, "smoothing").values
    assert values["start_difference"] < 1e-4
    assert values["with"]["cosine"][0] == pytest.approx(1.0, abs=1e-4)
    assert values["with"]["loss"][0] != values["with"]["loss"][-1]


@pytest.mark.parametrize("name", sorted(set(READINGS) - {"responses"}))
def test_a_diverged_network_is_refused(name: str, diverged: Subject) -> None:
    with pytest.raises(Unreadable, match=r"has diverged: conv1\.weight holds NaN"):
        take(diverged, name)


def test_too_few_images_are_refused(residual: Subject) -> None:
    with pytest.raises(Unreadable, match="two images or more"):
        take(replace(residual, images=residual.images.subset(torch.arange(1).numpy())), "gradients")
