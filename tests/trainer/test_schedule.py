"""What a schedule makes of the errors that it is told."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resforge.spec import OptimSpec
from trainer.optim import learning_rate
from trainer.schedule import BEGUN, WINDOW, ScheduleState, after_evaluation, after_window, warm_up_end, warming_up


def optim(**schedule: Any) -> OptimSpec:
    return OptimSpec.model_validate({"lr": 0.1, "schedule": schedule})


PLATEAU = optim(kind="plateau", patience=2, threshold=0.01, min_lr=0.0005)
UNTIL = optim(warmup_lr=0.01, warmup_until_error=0.8)
BOUNDED = optim(warmup_lr=0.01, warmup_until_error=0.8, warmup_steps=15)


@pytest.mark.parametrize(
    ("before", "error", "after"),
    [
        # the first counts as lower, whatever it is
        ({}, 0.9, {"best_error": 0.9}),
        # lower by more than the threshold; by less; not at all
        ({"best_error": 0.5, "bad_evaluations": 1}, 0.48, {"best_error": 0.48}),
        ({"best_error": 0.5}, 0.495, {"best_error": 0.5, "bad_evaluations": 1}),
        ({"best_error": 0.5}, 0.7, {"best_error": 0.5, "bad_evaluations": 1}),
        # the second in a row cuts, and both are counted anew
        ({"best_error": 0.5, "bad_evaluations": 1}, 0.5, {"best_error": 0.5, "cuts": 1}),
        ({"best_error": 0.5, "bad_evaluations": 1, "cuts": 1}, 0.5, {"best_error": 0.5, "cuts": 2}),
        # 0.1 cut three times is at the least rate already
        (
            {"best_error": 0.5, "bad_evaluations": 1, "cuts": 3},
            0.5,
            {"best_error": 0.5, "bad_evaluations": 2, "cuts": 3},
        ),
    ],
)
def test_a_plateau_is_cut(before: dict[str, Any], error: float, after: dict[str, Any]) -> None:
    assert after_evaluation(PLATEAU, ScheduleState(**before), 100, error) == ScheduleState(**after)


def test_cuts_end_at_the_least_rate() -> None:
    rates = [learning_rate(PLATEAU, 100, 1000, ScheduleState(cuts=cuts)) for cuts in range(5)]
    assert rates == pytest.approx([0.1, 0.01, 0.001, 0.0005, 0.0005])


@pytest.mark.parametrize("kind", ["step", "cosine", "constant"])
def test_other_kinds_take_no_notice_of_evaluations(kind: str) -> None:
    state = ScheduleState(best_error=0.5, bad_evaluations=100)
    assert after_evaluation(optim(kind=kind), state, 100, 0.5) == state


def test_evaluations_of_the_warm_up_are_not_looked_at() -> None:
    warming = optim(kind="plateau", patience=1, warmup_steps=10)
    assert after_evaluation(warming, BEGUN, 9, 0.1) == BEGUN
    assert after_evaluation(warming, BEGUN, 10, 0.1) == ScheduleState(best_error=0.1)


@given(st.lists(st.floats(0, 1), max_size=60), st.integers(1, 5), st.floats(0, 0.5))
def test_the_rate_never_rises_and_falls_only_after_patience(
    errors: list[float], patience: int, threshold: float
) -> None:
    plateau = optim(kind="plateau", patience=patience, threshold=threshold, gamma=0.5)
    states = [BEGUN]
    for step, error in enumerate(errors, start=1):
        states.append(after_evaluation(plateau, states[-1], step, error))
    rates = [learning_rate(plateau, 1, 100, state) for state in states]
    assert rates == sorted(rates, reverse=True)
    cuts = [at for at, (old, new) in enumerate(pairwise(states)) if new.cuts > old.cuts]
    assert all(later - earlier >= patience for earlier, later in pairwise(cuts))
    assert all(state.bad_evaluations < patience for state in states)
    assert all(state.best_error is None or state.best_error in errors for state in states)


@pytest.mark.parametrize(
    ("spec", "step", "error", "warm_at"),
    [
        (UNTIL, 10, 0.9, None),
        (UNTIL, 10, 0.8, None),
        (UNTIL, 10, 0.79, 10),
        (UNTIL, 100_000, 0.81, None),
        (BOUNDED, 10, 0.79, 10),
        (BOUNDED, 20, 0.79, None),  # over by its steps already
        (optim(warmup_lr=0.01, warmup_steps=100), 10, 0.0, None),  # of steps alone
        (optim(), 10, 0.0, None),
    ],
)
def test_a_warm_up_ends_below_its_error(spec: OptimSpec, step: int, error: float, warm_at: int | None) -> None:
    assert after_window(spec.schedule, BEGUN, step, error).warm_at == warm_at


def test_what_is_over_stays_over() -> None:
    over = ScheduleState(warm_at=20)
    assert after_window(UNTIL.schedule, over, 30, 0.99) == over
    assert after_window(UNTIL.schedule, over, 40, 0.1) == over


def test_ends_of_warm_ups() -> None:
    assert warm_up_end(optim().schedule, BEGUN) == 0
    assert warm_up_end(optim(warmup_steps=7).schedule, BEGUN) == 7
    assert warm_up_end(UNTIL.schedule, BEGUN) is None
    assert warm_up_end(UNTIL.schedule, ScheduleState(warm_at=30)) == 30
    assert warm_up_end(BOUNDED.schedule, BEGUN) == 15
    assert [warming_up(BOUNDED.schedule, BEGUN, step) for step in (0, 14, 15)] == [True, True, False]
    assert warming_up(UNTIL.schedule, BEGUN, 10**9)


def test_rates_until_the_error_has_fallen_and_behind_it() -> None:
    assert learning_rate(UNTIL, 9_999, 64_000) == 0.01
    assert learning_rate(UNTIL, 400, 64_000, ScheduleState(warm_at=400)) == 0.1
    assert learning_rate(UNTIL, 32_000, 64_000, ScheduleState(warm_at=400)) == pytest.approx(0.01)
    assert [learning_rate(BOUNDED, step, 64_000) for step in (14, 15)] == [0.01, 0.1]
    cosine = optim(kind="cosine", warmup_lr=0.01, warmup_until_error=0.5)
    assert learning_rate(cosine, 20, 100, ScheduleState(warm_at=20)) == 0.1
    assert learning_rate(cosine, 60, 100, ScheduleState(warm_at=20)) == pytest.approx(0.05)


def test_a_window_is_of_a_few_steps() -> None:
    assert WINDOW == 10, "the spec's description says ten"
