"""A study's figures from points that are made by hand, and the page that shows them."""

from datetime import UTC, datetime, timedelta

from resforge.metrics import EvalPoint, TrainPoint
from resforge.studies import StudySpec, expand
from resforge.studies.page import render
from resforge.studies.report import Measured, StudyDocument, StudyMember, StudyReport, measured, summarise

T0 = datetime(2026, 1, 1, tzinfo=UTC)
MEMBER = StudyMember(key="plain-20/seed-0", series="plain-20", seed=0, job="job-aaaaaaaaaaaa")


def train(step: int, top1: float, epoch: int = 0, attempt: int = 1) -> TrainPoint:
    return TrainPoint(
        at=T0 + timedelta(seconds=step), attempt=attempt, step=step, epoch=epoch, loss=1.0, top1=top1, top5=1.0, lr=0.1,
        images_per_second=1, step_time_s=1, data_wait_s=0, eta_s=0,
    )  # fmt: skip


def evaluation(step: int, top1: float, split: str = "test") -> EvalPoint:
    return EvalPoint.model_validate(
        {"at": T0, "attempt": 1, "step": step, "epoch": 0, "split": split, "loss": 1.0, "top1": top1, "top5": 1.0,
         "images": 10}
    )  # fmt: skip


def test_one_jobs_figures() -> None:
    points = [
        train(10, 0.2), evaluation(10, 0.3), train(20, 0.5, epoch=1), train(30, 0.7, epoch=1),
        evaluation(30, 0.9, "train"), evaluation(30, 0.6),
    ]  # fmt: skip
    found = measured(MEMBER, points, "succeeded")
    assert (round(found.train_error or 0, 6), round(found.test_error or 0, 6)) == (10, 40)
    assert round(found.running_train_error or 0, 6) == 40  # the mean of 50 and 30, of the last epoch
    assert [step for step, _ in found.train_curve] == [10, 20, 30]
    assert [(step, round(error)) for step, error in found.test_curve] == [(10, 70), (30, 40)]
    assert found.seconds == 20


def test_what_a_resumed_run_did_again_counts_once() -> None:
    found = measured(MEMBER, [train(10, 0.2), train(20, 0.3), train(20, 0.6, attempt=2)], "succeeded")
    assert [(step, round(error)) for step, error in found.train_curve] == [(10, 80), (20, 40)]


def test_an_unfinished_job_has_curves_and_no_figures() -> None:
    found = measured(MEMBER, [train(10, 0.2), evaluation(10, 0.3)], "unfinished")
    assert (found.train_error, found.test_error, found.running_train_error) == (None, None, None)
    assert found.train_curve
    assert measured(MEMBER, [], "unfinished").train_curve == ()


def report(errors: dict[str, list[float | None]], study: str = "degradation") -> StudyReport:
    """A report of series whose training errors are given, by seed."""
    members = [
        Measured(
            key=f"{name}/seed-{seed}", series=name, seed=seed, job="job-aaaaaaaaaaaa", train_error=error,
            outcome="succeeded" if error is not None else "failed", train_curve=((1, 90.0), (2, 50.0)),
            test_curve=((2, 55.0),),
        )
        for name, values in errors.items()
        for seed, error in enumerate(values)
    ]  # fmt: skip
    document = StudyDocument(
        id="study-<b>", project="demo", spec=StudySpec.model_validate({"study": study}), members=(), created_at=T0
    )
    return summarise(document, members)


def test_degradation_that_shows() -> None:
    found = report({"plain-20": [10, 12], "plain-56": [30, 40], "resnet-20": [8, 8], "resnet-56": [12, 10]})
    plain, residual = found.findings
    assert (plain.holds, plain.numbers["mean"]) == (True, 24)
    assert plain.numbers["difference_by_seed"] == {"0": 20, "1": 28}
    assert (residual.holds, residual.numbers["residual_mean"], residual.numbers["ratio"]) == (True, 3, 8)
    assert found.series[0].train_error is not None
    assert (found.series[0].train_error.mean, round(found.series[0].train_error.std or 0, 4)) == (11, 1.4142)
    assert found.series[2].published == 8.75
    assert found.unfinished == ()


def test_degradation_that_does_not_show_is_said_so() -> None:
    found = report({"plain-20": [10, 12], "plain-56": [30, 11], "resnet-20": [8, 8], "resnet-56": [20, 20]})
    assert [finding.holds for finding in found.findings] == [False, False]


def test_missing_numbers_leave_a_finding_open() -> None:
    found = report({"plain-20": [10], "plain-56": [None], "resnet-20": [8], "resnet-56": [9]})
    assert [finding.holds for finding in found.findings] == [None, None]
    assert found.unfinished == ("plain-56/seed-0",)


def test_identity_compares_with_the_shallow_network() -> None:
    names = ("", "-continued", "-grown", "-scratch")
    errors = {
        f"{kind}-{8 if index < 2 else 14}{name}": [error]
        for kind, values in (("plain", (10.0, 9.0, 8.0, 15.0)), ("resnet", (10.0, 9.0, 11.0, 9.0)))
        for index, (name, error) in enumerate(zip(names, values, strict=True))
    }
    assert set(errors) == {m.series for m in expand(StudySpec(study="identity", setting="digits"))}
    found = report({**errors}, study="identity")
    assert [(item.statement.split(",")[0].split(" ")[0], item.holds) for item in found.findings] == [
        ("plain-14-grown", True), ("plain-14-scratch", True), ("resnet-14-grown", False),
    ]  # fmt: skip


def test_the_page_stands_alone_and_escapes() -> None:
    page = render(report({"plain-20": [10, 12], "plain-56": [None, 40], "resnet-20": [8, 8], "resnet-56": [12, 10]}))
    assert "<svg" in page
    assert "study-&lt;b&gt;" in page
    assert "<script" not in page
    assert "11.00 ± 1.41" in page
    assert "plain-56/seed-0" in page
    assert 'src="' not in page
