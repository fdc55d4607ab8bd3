"""Readings of small trained networks, held against what can be worked out by other ways."""

import copy
import json
import math
import pickle
import random
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn
from torch.nn import functional as F

from resforge.spec.readings import READINGS, Reading
from tests.trainer.analysis.conftest import subject_of
from trainer.analysis import SOURCES, landscape, read, smoothing
from trainer.analysis.common import first_batch, measure
from trainer.analysis.lesions import kendall_tau, reordered
from trainer.analysis.paths import gradient_along
from trainer.analysis.subject import Outcome, Subject, here
from trainer.data.transforms import Normalisation
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

pytestmark = pytest.mark.stack  # nearly a minute of training and drawing


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


@pytest.fixture(scope="module")
def taken(residual: Subject) -> Callable[[str], Outcome]:
    """Readings of the residual network that several tests look at."""
    known: dict[str, Outcome] = {}

    def of(name: str) -> Outcome:
        if name not in known:
            known[name] = take(residual, name)
        return known[name]

    return of


@pytest.mark.parametrize("name", READINGS)
def test_every_reading_gives_figures_a_picture_and_units(name: str, taken: Callable[[str], Outcome]) -> None:
    check(taken(name))
    assert SOURCES[name]


# Of each network the readings whose code it meets in a way of its own, and what the refused ones say.
PLAIN = {"paths": "no shortcut", "ode": r"layer1\.0 has no shortcut"}
WEIGHED = {"ode": r"layer1\.0 weighs its shortcut"}
PROJECTED = {"ode": r"layer1\.0 has a projection"}
OTHERS: dict[str, tuple[dict[str, object], str, dict[str, str]]] = {
    "plain": ({"shortcut": "none"}, "gradients travel lesions smoothing", PLAIN),
    "plain bottleneck": (
        {"shortcut": "none", "block": "bottleneck", "depth": 20, "width": 4},
        "travel",
        PLAIN | {"ode": r"layer1\.1 has no shortcut"},
    ),
    "highway": (
        {"shortcut": "highway"},
        "responses gradients travel lesions smoothing",
        {"paths": "no shortcut"} | WEIGHED,
    ),
    "exclusive gating": ({"shortcut": "exclusive-gating", "depth": 8}, "gradients travel lesions paths", WEIGHED),
    "scaling": ({"shortcut": "scaling", "depth": 8}, "gradients travel", WEIGHED),
    "dropout": ({"shortcut": "dropout", "depth": 8}, "paths ode", {}),
    "option C": ({"shortcut": "C", "depth": 8}, "travel lesions", PROJECTED),
    "conv1x1": ({"shortcut": "conv1x1", "depth": 8}, "", PROJECTED),
    "option C, pre": ({"shortcut": "C", "order": "pre", "depth": 8}, "", PROJECTED),
    "preact": (
        {"order": "pre", "shortcut": "B"},
        "responses gradients travel lesions paths landscape ode smoothing",
        {},
    ),
    "bottleneck": (
        {"order": "pre", "block": "bottleneck", "depth": 20, "width": 4},
        "responses travel lesions paths ode",
        {},
    ),
    "tied": (
        {"tied": True, "depth": 20},
        "responses gradients travel lesions paths landscape ode",
        {"smoothing": r"layer1\.1 shares its batch norms"},
    ),
    "stochastic": ({"survival": 0.5, "depth": 8}, "paths lesions ode", {}),
    "vgg": (
        {"family": "vgg", "depth": 11, "width": 2},
        "responses travel landscape",
        dict.fromkeys(("gradients", "lesions", "paths", "ode"), "has no blocks")
        | {"smoothing": "no batch normalisation"},
    ),
    "vgg with batch norm": ({"family": "vgg", "depth": 11, "width": 2, "norm": "batch"}, "responses", {}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_networks_are_read_or_refused(kind: str) -> None:
    fields, accepted, refused = OTHERS[kind]
    subject = subject_of(steps=3, **fields)
    for name in accepted.split():
        check(take(subject, name))
    for name, said in refused.items():
        with pytest.raises(Unreadable, match=said):
            take(subject, name)


@pytest.mark.parametrize("name", ["lesions", "landscape"])
def test_the_seed_decides(name: str, residual: Subject, taken: Callable[[str], Outcome]) -> None:
    assert take(residual, name).values == taken(name).values
    assert take(replace(residual, seed=5), name).values != taken(name).values


def test_a_response_is_the_deviation_behind_the_batch_norm(residual: Subject, taken: Callable[[str], Outcome]) -> None:
    seen: list[torch.Tensor] = []
    block = residual.network.get_submodule("layer2.0")
    handle = block.bn1.register_forward_hook(lambda _m, _i, out: seen.append(out))  # type: ignore[union-attr]
    with torch.no_grad():
        residual.network(first_batch(residual, len(residual.images))[0])
    handle.remove()
    values = taken("responses").values
    found = dict(zip(values["layers"], values["std"], strict=True))
    assert len(found) == 13
    assert found["layer2.0.conv1"] == pytest.approx(float(seen[0].double().std(correction=0)), rel=1e-4)


def test_a_response_that_overflows_is_none(residual: Subject) -> None:
    network = copy.deepcopy(residual.network)
    with torch.no_grad():
        network.get_submodule("layer2.0.bn1").weight.fill_(1e38)  # type: ignore[union-attr,operator]
    outcome = take(replace(residual, network=network), "responses")
    check(outcome)
    found = dict(zip(outcome.values["layers"], outcome.values["std"], strict=True))
    assert found["layer1.1.conv2"] > 0
    assert found["layer3.1.conv2"] is outcome.values["mean_std"] is None


def test_the_parts_of_a_gradient_are_those_of_the_block(residual: Subject, taken: Callable[[str], Outcome]) -> None:
    """Of the last block: g at the sum is known in closed form, so both parts can be taken by themselves."""
    values = taken("gradients").values
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


def test_nothing_has_travelled_at_initialisation(residual: Subject, taken: Callable[[str], Outcome]) -> None:
    values = take(replace(residual, network=residual.initial().eval()), "travel").values
    assert set(values["travel"]) == set(values["block_travel"]) == {0.0}
    moved = taken("travel").values
    assert all(distance > 0 for distance in moved["travel"])
    # A residual block becomes an identity when its last batch norm's weights, ones, go to zero.
    channels = [residual.network.get_submodule(name).bn2.weight.numel() for name in moved["blocks"]]  # type: ignore[union-attr]
    assert moved["identity"] == pytest.approx([count**0.5 for count in channels])


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        ({"shortcut": "none"}, True),
        ({"shortcut": "none", "block": "bottleneck", "depth": 20}, False),
        ({"shortcut": "B", "block": "bottleneck", "depth": 20}, True),
        ({"shortcut": "C"}, False),
        ({"shortcut": "C", "order": "pre"}, False),
        ({"shortcut": "scaling"}, False),
    ],
    ids=str,
)
def test_an_identity_is_told_where_there_is_one(fields: dict[str, object], known: bool) -> None:
    values = take(subject_of(steps=0, width=4, **fields), "travel").values
    assert len(values["identity"]) == (3 if fields.get("block") else 4)
    assert all((distance is not None) == known for distance in values["identity"])


def test_a_deleted_block_leaves_its_shortcut(residual: Subject) -> None:
    network = copy.deepcopy(residual.network)
    block = network.get_submodule("layer3.1")
    nn.init.zeros_(block.bn2.weight)  # type: ignore[union-attr,arg-type]
    nn.init.zeros_(block.bn2.bias)  # type: ignore[union-attr,arg-type]
    values = take(residual, "lesions", blocks=["layer3.1"], most=0, swaps=0).values
    assert values["deleted"] == {"layer3.1": measure(network, residual)[1]}
    assert values["error"] == measure(residual.network, residual)[1] < 0.5


def test_the_median_of_an_even_number_lies_between_the_middle_two(residual: Subject) -> None:
    values = take(residual, "lesions", blocks=["layer1.0", "layer2.0"], most=0, swaps=0).values
    one, other = values["deleted"].values()
    assert one != other
    assert values["median_deleted"] == statistics.median([one, other]) == pytest.approx((one + other) / 2)


def test_swaps_do_not_undo_each_other() -> None:
    """Of two shapes with 4 and 3 blocks: each order takes as many swaps as were drawn, and 5 at most."""
    pairs = [*combinations((0, 1, 2, 3), 2), *combinations((5, 6, 7), 2)]
    draw = random.Random(3)
    for swaps in (0, 1, 2, 3, 4, 5):
        for _ in range(20):
            order = reordered(8, pairs, swaps, draw)
            assert sorted(order[:4]) == [0, 1, 2, 3]
            assert (order[4], sorted(order[5:])) == (4, [5, 6, 7])
            undone = 0
            for place in range(8):  # puts every block back by a swap, in as few as there can be
                while order[place] != place:
                    other = order[place]
                    order[place], order[other] = order[other], order[place]
                    undone += 1
            assert undone == swaps


def test_kendalls_tau() -> None:
    assert [kendall_tau(order) for order in ([0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3])] == [1, -1, pytest.approx(4 / 6)]


def test_a_swap_exchanges_two_blocks(residual: Subject, taken: Callable[[str], Outcome]) -> None:
    """Of this network there are but two blocks of one shape, whatever number of swaps is asked for."""
    network = copy.deepcopy(residual.network)
    network.layer1 = nn.Sequential(*reversed(list(network.layer1)))  # type: ignore[arg-type]
    values = taken("lesions").values
    assert values["by_swaps"] == {"1": [measure(network, residual)[1]] * 2}
    assert values["swaps_tau"] == {"1": [pytest.approx(13 / 15)] * 2}


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
    assert isinstance(network, ResNet)
    network.stages = ("layer3",)
    network.stem = lambda images: images  # type: ignore[method-assign,assignment]
    assert len(network.blocks()) == 2
    x, labels = torch.rand(8, 16, 4, 4), torch.arange(8)
    found = [gradient_along(network, set(through), x.clone(), labels) for through in ((), (0,), (1,), (0, 1))]
    assert all(float(gradient.norm()) > 0 for gradient in found)
    whole = x.clone().requires_grad_()
    [expected] = torch.autograd.grad(F.cross_entropy(network(whole), labels), whole)
    torch.testing.assert_close(sum(found), expected)


def test_shares_of_the_gradient_are_counts_times_norms(taken: Callable[[str], Outcome]) -> None:
    values = taken("paths").values
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


def test_what_f_adds_counts_as_often_as_it_survives(residual: Subject, taken: Callable[[str], Outcome]) -> None:
    network = copy.deepcopy(residual.network)
    network.get_submodule("layer3.1").survival = 0.25  # type: ignore[assignment]
    *others, last = take(replace(residual, network=network), "ode").values["residual_to_input"]
    *expected, whole = taken("ode").values["residual_to_input"]
    assert others == pytest.approx(expected)
    assert last == pytest.approx(whole / 4)


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


def test_a_landscape_travels_to_other_processes(residual: Subject, taken: Callable[[str], Outcome]) -> None:
    def elsewhere(function: Callable[..., Any], items: Iterable[Any]) -> Iterator[Any]:
        shipped = pickle.loads(pickle.dumps(function))
        return (shipped(item, device=torch.device("cpu")) for item in items)

    assert take(residual, "landscape", spread=elsewhere).values == taken("landscape").values


@pytest.mark.filterwarnings("ignore:.*which is a no-op")
def test_a_worker_computes_a_landscape_on_its_own_device(residual: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the device of the process that spreads it, and nothing that travels lies on that."""
    moved: list[str] = []
    seen: list[set[str]] = []

    class Noted(Normalisation):
        def to(self, device: torch.device | str) -> "Noted":
            moved.append(str(device))
            return super().to(device)

    def note(network: nn.Module, subject: Subject) -> tuple[float, float]:
        seen.append({subject.device.type, *(parameter.device.type for parameter in network.parameters())})
        return 1.0, 0.5

    def elsewhere(function: Any, items: Iterable[Any]) -> Iterator[Any]:
        assert (function.args[0].device.type, moved) == ("cpu", ["cpu"])
        return (function(item, device=torch.device("meta")) for item in items)

    monkeypatch.setattr(landscape, "measure", note)
    normalisation: Normalisation = residual.normalise.__self__  # type: ignore[attr-defined]
    noted = Noted(normalisation.mean, normalisation.std)
    take(replace(residual, normalise=noted.normalise, device=torch.device("cuda")), "landscape", spread=elsewhere)
    assert moved == ["cpu", *["meta"] * 3]
    assert seen == [{"cuda", "cpu"}, *[{"meta"}] * 9]  # the network's own loss, and three rows of three


def test_a_landscapes_colours_and_levels_are_of_one_scale(residual: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(landscape, "png", lambda figure: figures.append(figure) or b"")
    rows: list[list[float | None]] = [[10.0 ** (abs(x) + abs(y) - 2) for x in range(-2, 3)] for y in range(-2, 3)]
    landscape._draw("a title", [-1, -0.5, 0, 0.5, 1], rows)
    filled = figures[0].axes[0].collections[0]
    colours = filled.norm(filled.levels).data
    assert [*map(math.log10, (filled.levels[0], filled.levels[-1]))] == pytest.approx([-2, 2])
    assert colours[1:] - colours[:-1] == pytest.approx(1 / 19)


CHANCE: dict[str, dict[str, object]] = {
    "stochastic depth": {"survival": 0.5, "depth": 8},
    "dropout on shortcuts": {"shortcut": "dropout", "depth": 8},
    "dropout in vgg-11-bn": {"family": "vgg", "depth": 11, "width": 2, "norm": "batch"},
}


@pytest.mark.parametrize("kind", CHANCE)
def test_chance_has_no_part_in_what_batch_norm_does(kind: str) -> None:
    subject = subject_of(steps=3, **CHANCE[kind])
    for name in ("smoothing", "gradients") if kind != "dropout in vgg-11-bn" else ("smoothing",):
        first = take(subject, name)
        check(first)
        if name == "smoothing":
            assert first.values["start_difference"] < 1e-4
        torch.manual_seed(17)
        assert take(subject, name).values == first.values


def test_two_functions_are_not_compared(residual: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoothing, "_frozen", lambda network, _images: network.eval())  # the running statistics
    with pytest.raises(Unreadable, match="would tell nothing of batch norm"):
        take(residual, "smoothing")


def test_with_and_without_batch_norm_begin_at_the_same_loss(taken: Callable[[str], Outcome]) -> None:
    values = taken("smoothing").values
    assert values["start_difference"] < 1e-4
    assert values["with"]["cosine"][0] == pytest.approx(1.0, abs=1e-4)
    assert values["with"]["loss"][0] != values["with"]["loss"][-1]


@pytest.mark.parametrize("name", READINGS)
def test_a_diverged_network_is_refused(name: str, diverged: Subject) -> None:
    with pytest.raises(Unreadable, match=r"has diverged: conv1\.weight holds NaN"):
        take(diverged, name)


def test_too_few_images_are_refused(residual: Subject) -> None:
    with pytest.raises(Unreadable, match="two images or more"):
        take(replace(residual, images=residual.images.subset(torch.arange(1).numpy())), "gradients")
