"""A study's curves as SVG: training error dashed, test error solid, as in the paper's figures; means over seeds."""

import io
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from resforge.studies.report import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What is drawn in this colour takes the page's own, so that the picture is readable on light and on dark.
_INK = "#010203"
# Okabe and Ito's colours, which people with colour blindness tell apart, less black and yellow.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c6bb1", "#999999")

Curve = tuple[tuple[int, float], ...]


def draw(panels: Mapping[str, Mapping[str, Sequence[Measured]]]) -> str:
    """One panel beside the other, each of some series with their members; all panels share the axis of errors."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.hashsalt": "resforge", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        figure.patch.set_alpha(0)
        rows = figure.subplots(1, len(panels), sharey=True, squeeze=False)
        for axes, (title, group) in zip(rows[0], panels.items(), strict=True):
            axes.patch.set_alpha(0)
            for index, (name, members) in enumerate(group.items()):
                _series(axes, name, members, _COLOURS[index % len(_COLOURS)])
            axes.set(xlabel="step", xlim=(0, None), title=title)
            axes.grid(alpha=0.15, color=_INK)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="upper right")
        rows[0][0].set(
            ylabel="error (%)", ylim=(0, _top([item for group in panels.values() for item in group.values()]))
        )
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor")


def _top(groups: Sequence[Sequence[Measured]]) -> float:
    """Where the axis of errors ends: every network that has learned is in the picture at its end; the first steps'
    errors, and a network that does not train beside others that do, would leave no room."""
    means = [mean for members in groups for curves in _drawn(members) if (mean := over_seeds(curves)[1])]
    if not means:
        return 100.0
    last = [mean[-1] for mean in means]
    learned = [error for error in last if error <= 5 * statistics.median(last)]
    return min(max(1.3 * max(learned), 5.0), 1.05 * max(map(max, means)) or 5.0)


def _drawn(members: Sequence[Measured]) -> tuple[list[Curve], list[Curve]]:
    """The curves of training and of test errors. One that broke off would cut the others' mean short."""
    whole = [member for member in members if member.outcome == "succeeded"] or members
    return [member.train_curve for member in whole], [member.test_curve for member in whole]


def _series(axes: "Axes", name: str, members: Sequence[Measured], colour: str) -> None:
    training, test = _drawn(members)
    steps, mean, _, _ = over_seeds(training)
    axes.plot(steps, mean, "--", color=colour, linewidth=1.1)
    steps, mean, low, high = over_seeds(test)
    axes.plot(steps, mean, "-", color=colour, linewidth=2.2, label=name if steps else None)
    if len(test) > 1:
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)


def over_seeds(curves: Sequence[Curve]) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps that all curves have, with the mean, least and most of their errors there."""
    points = [dict(curve) for curve in curves if curve]
    if not points:
        return [], [], [], []
    steps = sorted(set.intersection(*(set(item) for item in points)))
    values = [[item[step] for item in points] for step in steps]
    return steps, [sum(v) / len(v) for v in values], [min(v) for v in values], [max(v) for v in values]
