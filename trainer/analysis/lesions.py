"""Lesions: the error of a trained network after blocks are deleted or swapped (Veit et al. 2016, section 4).

A deleted residual block leaves its shortcut, with whatever weighs it: F(x) becomes 0. A plain block that keeps its
shape is left out altogether; one that changes it, and the stem, can't be. Swaps exchange two blocks of one shape.

Units: top-1 errors from 0 to 1, without any training after the lesion. Pitfalls: batch norm's statistics behind a
lesion are those of the whole network; chance is (classes - 1) / classes.
"""

import copy
import random
from collections.abc import Iterable

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
    pairs = [
        (one, other)
        for index, one in enumerate(blocks)
        for other in list(blocks)[index + 1 :]
        if _alike(one, other, blocks)
    ]
    swaps = reading.swaps if pairs else 0
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
    by_swaps = {
        str(count): [
            error(_swapped(subject.network, [draw.choice(pairs) for _ in range(count)])) for _ in range(reading.draws)
        ]
        for count in range(1, swaps + 1)
    }
    values = {
        "error": whole,
        "deleted": deleted,
        "median_deleted": sorted(deleted.values())[len(deleted) // 2],
        "by_count": by_count,
        "by_swaps": by_swaps,
    }
    return Outcome(values, UNITS, {"lesions.png": _draw(subject.title, whole, deleted, by_count, by_swaps)})


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


def _swapped(network: nn.Module, pairs: Iterable[tuple[str, str]]) -> nn.Module:
    changed = copy.deepcopy(network)
    for one, other in pairs:
        first, second = changed.get_submodule(one), changed.get_submodule(other)
        changed.set_submodule(one, second)
        changed.set_submodule(other, first)
    return changed


def _draw(
    title: str,
    whole: float,
    deleted: dict[str, float],
    by_count: dict[str, list[float]],
    by_swaps: dict[str, list[float]],
) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(f"Lesions: {title}")
    one, several, swapped = figure.subplots(1, 3, sharey=True)
    one.bar(range(len(deleted)), [100 * error for error in deleted.values()], color="C0")
    one.set_xticks(range(len(deleted)), list(deleted), rotation=90, fontsize=7)
    one.set(xlabel="deleted block", ylabel="top-1 error (%)", ylim=(0, 100))
    for axes, found, label in ((several, by_count, "blocks deleted"), (swapped, by_swaps, "swaps")):
        if found:
            axes.boxplot([[100 * error for error in errors] for errors in found.values()])
            axes.set_xticks(range(1, len(found) + 1), list(found))
        axes.set(xlabel=label)
    for axes in (one, several, swapped):
        axes.axhline(100 * whole, color="k", linestyle=":", linewidth=1)
        axes.grid(alpha=0.3)
    return png(figure)
