"""Lesions: the error of a trained network after blocks are deleted or swapped (Veit et al. 2016, section 4).

A deleted residual block leaves its shortcut, with whatever weighs it: F(x) becomes 0. A plain block that keeps its
shape is left out altogether; one that changes it, and the stem, can't be. Swaps exchange two blocks of one shape, so
many that no fewer would lead to the order that is drawn; how much is left of the first order is told by Kendall's tau.

Units: top-1 errors from 0 to 1, without any training after the lesion; tau from -1 to 1. Pitfalls: batch norm's
statistics behind a lesion are those of the whole network; chance is (classes - 1) / classes; tau counts all pairs of
blocks, and those of two stages keep their order, so its least value depends on the network; blocks of a tied network
that share their weights swap without any effect.
"""

import copy
import random
import statistics
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from torch import Tensor, nn

from resforge.spec.readings import LesionsReading
from trainer.analysis.common import blocks_of, measure, must_be_finite, png
from trainer.analysis.subject import Outcome, Progress, Spread, Subject
from trainer.errors import Unreadable
from trainer.models.residual import ResidualBlock

UNITS = {
    "error": "top-1 error of the whole network, 0 to 1",
    "deleted": "top-1 error without this block alone, 0 to 1",
    "median_deleted": "median of these",
    "by_count": "top-1 errors without so many blocks, one for each draw",
    "by_swaps": "top-1 errors after so many swaps of two blocks of one shape, one for each draw",
    "swaps_tau": "Kendall's rank correlation of the order of all blocks with the original, for each draw of by_swaps; "
    "1: the same order, -1: reversed",
}


class _Deleted(nn.Module):
    """What is left of a block: its shortcut, or nothing."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x if self.block.plain else self.block.join(x, None, self.block.skip(x))


def read(reading: LesionsReading, subject: Subject, progress: Progress, spread: Spread) -> Outcome:
    must_be_finite(subject.network)
    blocks = dict(blocks_of(subject.network))
    candidates = _candidates(reading, blocks)
    most = min(reading.most, len(candidates))
    names = list(blocks)
    pairs = [
        (one, other) for one, other in combinations(range(len(names)), 2) if _alike(names[one], names[other], blocks)
    ]
    # Of n blocks of one shape, n - 1 swaps lead to any order.
    swaps = min(reading.swaps, len({other for _, other in pairs}))
    total, done = 1 + len(candidates) + reading.draws * (most + swaps), 0

    def error(network: nn.Module) -> float:
        nonlocal done
        found = measure(network, subject)[1]
        done += 1
        progress(done, total)
        return found

    draw = random.Random(subject.seed)
    whole = error(subject.network)
    deleted = {name: error(_without(subject.network, [name])) for name in candidates}
    by_count = {
        str(count): [error(_without(subject.network, draw.sample(candidates, count))) for _ in range(reading.draws)]
        for count in range(1, most + 1)
    }
    orders = {
        str(count): [reordered(len(names), pairs, count, draw) for _ in range(reading.draws)]
        for count in range(1, swaps + 1)
    }
    by_swaps = {
        count: [error(_in_order(subject.network, names, order)) for order in drawn] for count, drawn in orders.items()
    }
    values = {
        "error": whole,
        "deleted": deleted,
        "median_deleted": statistics.median(deleted.values()),
        "by_count": by_count,
        "by_swaps": by_swaps,
        "swaps_tau": {count: [kendall_tau(order) for order in drawn] for count, drawn in orders.items()},
    }
    return Outcome(values, UNITS, {"lesions.png": _draw(subject.title, values)})


def _candidates(reading: LesionsReading, blocks: dict[str, ResidualBlock]) -> list[str]:
    """The blocks that are to be deleted.

    Raises:
        Unreadable: one of those that were named is none, or can't be deleted.
    """
    possible = [name for name, block in blocks.items() if not (block.plain and block.changes_shape)]
    for name in reading.blocks or ():
        if name not in blocks:
            raise Unreadable(
                f"reading.blocks names {name!r}, which is no block that can be deleted; "
                f"accepted are {', '.join(possible)}"
            )
        if name not in possible:
            raise Unreadable(
                f"reading.blocks names {name!r}, a plain block that changes the shape: without it nothing fits; "
                f"accepted are {', '.join(possible) or 'none of this network'}"
            )
    chosen = list(reading.blocks or possible)
    if not chosen:
        raise Unreadable("the network has no block that can be deleted: all of its plain blocks change the shape")
    return chosen


def _alike(one: str, other: str, blocks: dict[str, ResidualBlock]) -> bool:
    same_stage = one.partition(".")[0] == other.partition(".")[0]
    return same_stage and not blocks[one].changes_shape and not blocks[other].changes_shape


def _without(network: nn.Module, names: Iterable[str]) -> nn.Module:
    lesioned = copy.deepcopy(network)
    for name in names:
        lesioned.set_submodule(name, _Deleted(lesioned.get_submodule(name)))
    return lesioned


def reordered(count: int, pairs: Sequence[tuple[int, int]], swaps: int, draw: random.Random) -> list[int]:
    """An order of so many blocks that takes this number of swaps, and no fewer.

    A swap of two blocks in different cycles of a permutation joins the cycles, and any other one splits a cycle: it
    would undo another swap. So only the first kind is drawn.

    Args:
        count: of blocks.
        pairs: places whose blocks may be swapped.
        swaps: one less than all blocks of a shape, for each shape, at most.
        draw: decides.

    Returns:
        For each place the number of the block that stands there.
    """
    order, cycles = list(range(count)), list(range(count))
    for _ in range(swaps):
        one, other = draw.choice(pairs)
        while cycles[one] == cycles[other]:
            one, other = draw.choice(pairs)
        order[one], order[other] = order[other], order[one]
        cycles = [cycles[one] if cycle == cycles[other] else cycle for cycle in cycles]
    return order


def kendall_tau(order: Sequence[int]) -> float:
    """The rank correlation of an order of distinct numbers with the ascending one: pairs that agree less those that do
    not, of all pairs."""
    pairs = list(combinations(order, 2))
    return sum(1 if one < other else -1 for one, other in pairs) / len(pairs)


def _in_order(network: nn.Module, names: Sequence[str], order: Sequence[int]) -> nn.Module:
    """A copy in which at the place of each name stands the block of that number."""
    changed = copy.deepcopy(network)
    blocks = [changed.get_submodule(name) for name in names]
    for name, number in zip(names, order, strict=True):
        changed.set_submodule(name, blocks[number])
    return changed


def _draw(title: str, values: dict[str, Any]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(f"Lesions: {title}")
    one, several, swapped = figure.subplots(1, 3, sharey=True)
    deleted, by_count = values["deleted"], values["by_count"]
    one.bar(range(len(deleted)), [100 * error for error in deleted.values()], color="C0")
    one.set_xticks(range(len(deleted)), list(deleted), rotation=90, fontsize=7)
    one.set(xlabel="deleted block", ylabel="top-1 error (%)", ylim=(0, 100))
    if by_count:
        several.boxplot([[100 * error for error in errors] for errors in by_count.values()])
        several.set_xticks(range(1, len(by_count) + 1), list(by_count))
    several.set(xlabel="blocks deleted")
    for count, errors in values["by_swaps"].items():
        swapped.plot(values["swaps_tau"][count], [100 * error for error in errors], "o", label=count, alpha=0.7)
    swapped.set(xlabel="Kendall's tau with the original order")
    swapped.invert_xaxis()
    if values["by_swaps"]:
        swapped.legend(title="swaps", fontsize=7, title_fontsize=8)
    for axes in (one, several, swapped):
        axes.axhline(100 * values["error"], color="k", linestyle=":", linewidth=1)
        axes.grid(alpha=0.3)
    return png(figure)
