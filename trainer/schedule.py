"""What a schedule of the learning rate remembers of the training so far: values, and decisions without I/O."""

from dataclasses import dataclass, replace

from resforge.spec import OptimSpec, ScheduleSpec

# The training error that ends a warm-up is that of so many steps, counted from the run's first: of 1280 images in the
# paper's batches, which tells it within 1.2 points.
WINDOW = 10


@dataclass(frozen=True)
class ScheduleState:
    """What the rate depends on besides the step. A checkpoint holds it, and every rank has the same.

    Attributes:
        warm_at: the step from which the warm-up is over because the training error fell; None where it did not.
        best_error: the lowest held-out error since the warm-up, as far as it counts as lower.
        bad_evaluations: evaluations in a row that did not come below it.
        cuts: how often the rate was cut.
        hits, images: of the window at hand, over all ranks. Only a checkpoint's state has them.
    """

    warm_at: int | None = None
    best_error: float | None = None
    bad_evaluations: int = 0
    cuts: int = 0
    hits: int = 0
    images: int = 0


BEGUN = ScheduleState()


def warm_up_end(schedule: ScheduleSpec, state: ScheduleState) -> int | None:
    """The first step behind the warm-up; None while only the training error can tell."""
    if schedule.warmup_until_error is None:
        return schedule.warmup_steps
    if state.warm_at is not None:
        return state.warm_at
    return schedule.warmup_steps or None


def warming_up(schedule: ScheduleSpec, state: ScheduleState, step: int) -> bool:
    """Whether step `step`, from 0, belongs to the warm-up."""
    end = warm_up_end(schedule, state)
    return end is None or step < end


def after_window(schedule: ScheduleSpec, state: ScheduleState, step: int, error: float) -> ScheduleState:
    """After `step` steps, the last WINDOW of which had this training error."""
    limit = schedule.warmup_until_error
    if limit is None or error >= limit or not warming_up(schedule, state, step):
        return state
    return replace(state, warm_at=step)


def after_evaluation(optim: OptimSpec, state: ScheduleState, step: int, error: float) -> ScheduleState:
    """After `step` steps, with this held-out top-1 error.

    An error is lower when it is below the lowest so far by more than the threshold. After `patience` in a row that
    are not, the rate is cut and they are counted anew. Those of the warm-up are not looked at.
    """
    schedule = optim.schedule
    if schedule.kind != "plateau" or warming_up(schedule, state, step):
        return state
    if state.best_error is None or error < state.best_error - schedule.threshold:
        return replace(state, best_error=error, bad_evaluations=0)
    bad = state.bad_evaluations + 1
    if bad < schedule.patience or cut_rate(optim, state) <= schedule.min_lr:
        return replace(state, bad_evaluations=bad)
    return replace(state, bad_evaluations=0, cuts=state.cuts + 1)


def cut_rate(optim: OptimSpec, state: ScheduleState) -> float:
    """The rate after the cuts so far, no lower than the least."""
    return max(optim.schedule.min_lr, optim.lr * optim.schedule.gamma**state.cuts)
