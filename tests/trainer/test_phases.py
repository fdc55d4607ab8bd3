"""Where a worker's time goes, by a clock that tests turn; and what can be read of a device that is no GPU."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resforge.metrics import PHASES
from trainer.gpu import GpuReadings
from trainer.phases import CHECKPOINT, EVALUATION, Phases


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_is_not_spent_otherwise_is_compute() -> None:
    clock = Clock()
    phases = Phases(clock)
    clock.now += 3
    phases.waited(1)
    with phases.on(EVALUATION):
        clock.now += 10
    with phases.on(CHECKPOINT):
        clock.now += 5
    assert phases.aside == 15
    assert phases.seconds() == {"data": 1, "compute": 2, "evaluation": 10, "checkpoint": 5}


def test_a_checkpoint_that_fails_took_its_time_too() -> None:
    clock = Clock()
    phases = Phases(clock)
    with pytest.raises(OSError, match="disk"), phases.on(CHECKPOINT):  # noqa: PT012
        clock.now += 4
        raise OSError("disk")
    assert phases.seconds()[CHECKPOINT] == 4


@given(st.lists(st.tuples(st.sampled_from(PHASES), st.floats(0, 1e4))))
def test_phases_add_up_to_all_the_time_there_was(story: list[tuple[str, float]]) -> None:
    clock = Clock()
    phases = Phases(clock)
    for phase, seconds in story:
        if phase in (EVALUATION, CHECKPOINT):
            with phases.on(phase):
                clock.now += seconds
        else:
            clock.now += seconds
            phases.waited(seconds if phase == "data" else 0)
    told = phases.seconds()
    assert set(told) == set(PHASES)
    assert sum(told.values()) == pytest.approx(clock.now - 100, abs=1e-6)
    for phase in PHASES:
        assert told[phase] == pytest.approx(sum(s for name, s in story if name == phase), abs=1e-6)


def test_of_a_cpu_nothing_is_read() -> None:
    assert GpuReadings(torch.device("cpu")).read() == {}
