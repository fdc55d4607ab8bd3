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
from trainer.analysis import SOURCES, read
from trainer.analysis.common import first_batch, measure
from trainer.analysis.subject import Outcome, Subject, here
from trainer.errors import Unreadable

READING: TypeAdapter[Any] = TypeAdapter(Reading)
SMALL: dict[str, dict[str, Any]] = {
    "lesions": {"most": 2, "draws": 2, "swaps": 2},
    "landscape": {"points": 3},
    "smoothing": {"batch": 16, "batches": 2, "steps": 3},
    "gradients": {"batch": 32},
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


@pytest.mark.parametrize("kind", ["residual", "plain"])
@pytest.mark.parametrize("name", READINGS)
def test_every_reading_gives_figures_a_picture_and_units(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    outcome = take(request.getfixturevalue(kind), name)
    assert set(outcome.values) == set(outcome.units)
    assert SOURCES[name]
    json.dumps(outcome.values, allow_nan=False)
    for picture in outcome.pictures.values():
        assert picture.startswith(b"\x89PNG")
    assert outcome.pictures


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
