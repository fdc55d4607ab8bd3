"""Training curves as the paper draws them: training error dashed, test error solid, over the steps."""

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from resforge.cli.exits import Exit, Failure
from resforge.metrics import EvalPoint, TrainPoint

FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Curves:
    """What is drawn: for each kind of point its steps and values. Errors are in percent."""

    train: tuple[TrainPoint, ...]
    test: tuple[EvalPoint, ...]


def curves(points: Iterable[TrainPoint | EvalPoint]) -> Curves:
    """The points of a job, each step once: what a resumed run did again replaces what it repeats.

    Args:
        points: in the order in which they were recorded, by attempt.
    """
    train: list[TrainPoint] = []
    test: list[EvalPoint] = []
    for point in points:
        if isinstance(point, TrainPoint):
            del train[bisect.bisect_left(train, point.step, key=_step) :]
            train.append(point)
        elif point.split == "test":
            del test[bisect.bisect_left(test, point.step, key=_step) :]
            test.append(point)
    return Curves(tuple(train), tuple(test))


def _step(point: TrainPoint | EvalPoint) -> int:
    return point.step


def draw(points: Sequence[TrainPoint | EvalPoint], path: Path, *, title: str) -> None:
    """Write the picture.

    Raises:
        Failure: matplotlib is absent, the file's ending is none that can be written, or there is nothing to draw.
    """
    if path.suffix.lower() not in FORMATS:
        raise Failure(f"{path}: expected a name that ends in {', '.join(FORMATS)}", Exit.USAGE)
    kept = curves(points)
    if not kept.train and not kept.test:
        raise Failure("the job has no metrics yet, so there is nothing to draw")
    try:
        from matplotlib.figure import Figure  # without pyplot, so no display is asked for
    except ModuleNotFoundError as error:
        raise Failure("matplotlib draws the curves and is not installed: pip install 'resforge[plots]'") from error

    figure = Figure(figsize=(9, 4), layout="constrained")
    figure.suptitle(title)
    errors, losses = figure.subplots(1, 2)
    steps = [point.step for point in kept.train]
    tested = [point.step for point in kept.test]
    errors.plot(steps, [100 * (1 - p.top1) for p in kept.train], "--", color="C0", linewidth=1, label="training")
    errors.plot(tested, [100 * (1 - p.top1) for p in kept.test], "-", color="C0", linewidth=2, label="test")
    errors.set(xlabel="step", ylabel="error (%)", ylim=(0, None))
    losses.plot(steps, [_value(p.loss) for p in kept.train], "--", color="C1", linewidth=1, label="training")
    losses.plot(tested, [_value(p.loss) for p in kept.test], "-", color="C1", linewidth=2, label="test")
    losses.set(xlabel="step", ylabel="loss (nats)", ylim=(0, None))
    for panel in (errors, losses):
        panel.grid(alpha=0.3)
        panel.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _value(loss: float | None) -> float:
    """A gap where the loss was not finite."""
    return float("nan") if loss is None else loss
