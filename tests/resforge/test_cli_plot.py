"""Which points of a job are drawn."""

from datetime import UTC, datetime
from pathlib import Path

from resforge.cli.plot import curves, draw
from resforge.metrics import EvalPoint, TrainPoint

AT = datetime(2026, 1, 2, tzinfo=UTC)


def train(step: int, attempt: int = 1, loss: float | None = 1.0) -> TrainPoint:
    return TrainPoint(
        at=AT, attempt=attempt, step=step, epoch=0, loss=loss, top1=0.5, top5=0.9, lr=0.1, images_per_second=1,
        step_time_s=1, data_wait_s=0, eta_s=0,
    )  # fmt: skip


def evaluated(step: int, attempt: int = 1, split: str = "test") -> EvalPoint:
    document = {"at": AT, "attempt": attempt, "step": step, "epoch": 0, "loss": 1.0, "top1": 0.5, "top5": 1.0}
    return EvalPoint.model_validate({**document, "images": 10, "split": split})


def test_each_step_is_drawn_once_and_the_later_run_of_it_counts() -> None:
    first = [train(5), train(10), evaluated(10), train(15), train(20), evaluated(20), train(25)]
    # Resumed from step 12; another attempt logs at other steps.
    second = [train(13, 2), train(18, 2), evaluated(20, 2), train(23, 2), train(28, 2)]
    kept = curves(first + second)
    assert [(point.step, point.attempt) for point in kept.train] == [
        (5, 1), (10, 1), (13, 2), (18, 2), (23, 2), (28, 2),
    ]  # fmt: skip
    assert [(point.step, point.attempt) for point in kept.test] == [(10, 1), (20, 2)]


def test_a_restart_inside_an_attempt_replaces_too() -> None:
    kept = curves([train(5), train(10), train(5), train(10, loss=0.5)])
    assert [(point.step, point.loss) for point in kept.train] == [(5, 1.0), (10, 0.5)]


def test_what_a_stopped_rerun_did_not_reach_stays_gone() -> None:
    assert [point.step for point in curves([train(5), train(10), train(15), train(7)]).train] == [5, 7]


def test_evaluations_of_training_images_are_not_drawn_as_test() -> None:
    assert curves([evaluated(10, split="train")]).test == ()


def test_a_loss_that_was_not_finite_is_a_gap(tmp_path: Path) -> None:
    draw([train(5), train(10, loss=None), train(15)], tmp_path / "curves.svg", title="<gap> & more")
    assert (tmp_path / "curves.svg").read_text().startswith("<?xml")
