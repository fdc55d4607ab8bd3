"""A study's figures from points that are made by hand, and what is said of them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from resforge.metrics import EvalPoint, TrainPoint
from resforge.reports import Report
from resforge.storage import Result
from resforge.studies import StudyDocument, StudyMember, StudyReport, StudySpec, expand
from resforge.studies.curves import over_seeds
from resforge.studies.published import published
from resforge.studies.report import MOST_POINTS, Measured, measured, summarise

T0 = datetime(2026, 1, 1, tzinfo=UTC)
MEMBER = StudyMember(key="plain-20/seed-0", series="plain-20", seed=0, job="job-aaaaaaaaaaaa")
DONE = Result(at=T0, outcome="succeeded")


def train(step: int, top1: float, epoch: int = 0, attempt: int = 1) -> TrainPoint:
    return TrainPoint(
        at=T0 + timedelta(seconds=step), attempt=attempt, step=step, epoch=epoch, loss=1.0, top1=top1, top5=1.0, lr=0.1,
        images_per_second=step, step_time_s=1, data_wait_s=0, eta_s=0,
    )  # fmt: skip


def evaluation(step: int, top1: float, split: str = "test", loss: float = 1.0) -> EvalPoint:
    return EvalPoint.model_validate(
        {"at": T0, "attempt": 1, "step": step, "epoch": 0, "split": split, "loss": loss, "top1": top1, "top5": 1.0,
         "images": 10}
    )  # fmt: skip


# One job


def test_one_jobs_figures() -> None:
    points = [
        train(10, 0.2), evaluation(10, 0.3), train(20, 0.5, epoch=1), train(30, 0.7, epoch=1),
        evaluation(30, 0.9, "train", 0.25), evaluation(30, 0.6, loss=0.5),
    ]  # fmt: skip
    found = measured(MEMBER, points, DONE, device="H100", versions={"torch": "2"})
    assert (round(found.train_error or 0, 6), round(found.test_error or 0, 6)) == (10, 40)
    assert round(found.running_train_error or 0, 6) == 40  # the mean of 50 and 30, of the last epoch
    assert (found.train_loss, found.test_loss) == (0.25, 0.5)
    assert [step for step, _ in found.train_curve] == [10, 20, 30]
    assert [(step, round(error)) for step, error in found.test_curve] == [(10, 70), (30, 40)]
    assert (found.seconds, found.images_per_second) == (20, 20)
    assert (found.device, found.versions, found.outcome) == ("H100", {"torch": "2"}, "succeeded")


def test_what_a_resumed_run_did_again_counts_once() -> None:
    found = measured(MEMBER, [train(10, 0.2), train(20, 0.3), train(20, 0.6, attempt=2)], DONE)
    assert [(step, round(error)) for step, error in found.train_curve] == [(10, 80), (20, 40)]


def test_an_unfinished_job_has_curves_and_no_figures() -> None:
    points = [train(10, 0.2), evaluation(10, 0.3), evaluation(10, 0.3, "train")]
    for result in (None, Result(at=T0, outcome="failed", message="no luck")):
        found = measured(MEMBER, points, result)
        assert (found.train_error, found.test_error, found.running_train_error) == (None, None, None)
        assert (found.train_loss, found.test_loss) == (None, None)
        assert found.train_curve
    assert (found.outcome, found.message) == ("failed", "no luck")
    assert measured(MEMBER, [], None).train_curve == ()
    assert measured(MEMBER, [], DONE).running_train_error is None


def test_a_start_has_errors_and_no_running_one() -> None:
    start = MEMBER.model_copy(update={"role": "start"})
    found = measured(start, [train(1, 0.2), evaluation(1, 0.9, "train"), evaluation(1, 0.8)], DONE)
    assert found.running_train_error is None
    assert (round(found.train_error or 0, 6), round(found.test_error or 0, 6)) == (10, 20)


def test_an_evaluations_error_is_its_reports() -> None:
    report = Report(
        kind="evaluate", name="ten-crop", title="t", job=MEMBER.job, attempt=1, checkpoints=(), dataset="d",
        split="test", images=1, values={"top1_error": 0.25}, seconds=1, device="cpu", made_at=T0,
    )  # fmt: skip
    for role, error in (("evaluation", 25), ("reading", None)):
        found = measured(MEMBER.model_copy(update={"role": role}), [], DONE, report=report)
        assert (found.test_error, found.train_error, found.report) == (error, None, report)


def test_curves_of_different_lengths_keep_steps_in_common() -> None:
    for length in (0, 1, MOST_POINTS, MOST_POINTS + 1, 5 * MOST_POINTS, 5 * MOST_POINTS + 7):
        curve = measured(MEMBER, [train(step, 0.5) for step in range(1, length + 1)], None).train_curve
        assert len(curve) <= MOST_POINTS
        assert [step for step, _ in curve] == sorted({step for step, _ in curve})
        assert not length or curve[-1][0] == length
    curves = [measured(MEMBER, [train(s, 0.5) for s in range(1, n + 1)], None).train_curve for n in (390, 410)]
    assert len(over_seeds(curves)[0]) > 80


def test_the_mean_over_seeds_is_of_steps_that_all_have() -> None:
    assert over_seeds([((1, 10.0), (2, 20.0)), ((2, 40.0), (3, 0.0)), ()]) == ([2], [30.0], [20.0], [40.0])
    assert over_seeds([(), ()]) == ([], [], [], [])


# Findings

Errors = Mapping[str, Sequence[float | None]]


def report(study: str, errors: Errors, setting: str = "small", **fields: Any) -> StudyReport:
    """A study's report where each series' errors are given by seed, alike for training and test images."""
    seeds = max(map(len, errors.values()))
    spec = StudySpec.model_validate({"study": study, "setting": setting, "seeds": seeds, **fields})
    expected = {member.series for member in expand(spec)}
    assert set(errors) <= expected
    found = []
    for index, member in enumerate(expand(spec)):
        if member.role not in ("training", "start"):
            continue
        error = errors.get(member.series, [None] * seeds)[member.seed]
        found.append(
            Measured(
                key=member.key, series=member.series, seed=member.seed, role=member.role, job=f"job-{index}",
                train_error=error, test_error=error, outcome="succeeded" if error is not None else "failed",
                train_loss=error, test_loss=error,
            )
        )  # fmt: skip
    document = StudyDocument(id="study-1", project="demo", spec=spec, members=(), created_at=T0)
    return summarise(document, found)


def held(found: StudyReport) -> list[bool | None]:
    return [finding.holds for finding in found.findings]


PREACT = {"depths": [20]}
ONE_DEPTH: dict[str, Any] = {"depths": [8]}
TABLE: list[tuple[str, dict[str, Any], Errors, list[bool | None]]] = [
    # plain-56 over plain-20 in every seed; resnet-56 not over resnet-20; its gap at most half
    ("degradation", {}, {"plain-20": [10, 12], "plain-56": [30, 40], "resnet-20": [8, 8], "resnet-56": [8, 7]},
     [True, True, True]),
    ("degradation", {}, {"plain-20": [10, 12], "plain-56": [30, 40], "resnet-20": [8, 8], "resnet-56": [12, 10]},
     [True, False, True]),
    ("degradation", {}, {"plain-20": [10, 12], "plain-56": [30, 11], "resnet-20": [8, 8], "resnet-56": [20, 20]},
     [False, False, False]),
    # No plain gap at all is none that the residual one could be half of.
    ("degradation", {}, {"plain-20": [10, 10], "plain-56": [10, 10], "resnet-20": [8, 8], "resnet-56": [4, 4]},
     [False, True, False]),
    # Every seed must be there for what is said of every seed, and one that disagrees settles it.
    ("degradation", {}, {"plain-20": [10, 12], "plain-56": [30, None], "resnet-20": [8, 8], "resnet-56": [8, 7]},
     [None, True, True]),
    ("degradation", {}, {"plain-20": [10, 12], "plain-56": [9, None], "resnet-20": [8, 8], "resnet-56": [8, 7]},
     [False, True, False]),
    ("degradation", {}, {"plain-20": [10], "plain-56": [None], "resnet-20": [8], "resnet-56": [9]},
     [None, False, None]),
    ("degradation", {"depths": [20, 32, 44]},
     {"plain-20": [1], "plain-32": [2], "plain-44": [0], "resnet-20": [1], "resnet-32": [1], "resnet-44": [2]},
     [True, True, True, False, False, False]),
    ("depth", {}, {"resnet-20": [9, 9], "resnet-32": [8, 9], "resnet-44": [9, 9], "resnet-56": [None, None]},
     [True, False, None]),
    ("depth", {"depths": [110, 1202]}, {"resnet-110": [6], "resnet-1202": [7]}, [True]),
    ("depth", {"depths": [110, 1202]}, {"resnet-110": [6], "resnet-1202": [5]}, [False]),
    ("shortcuts", ONE_DEPTH,
     {"resnet-8-A": [6], "resnet-8-B": [5], "resnet-8-C": [7], "resnet-8-scaling": [6], "resnet-8-dropout": [5],
      "resnet-8-shortcut-gating": [8]},
     # C, scaling, exclusive gating, shortcut gating with both biases, dropout
     [True, False, None, True, None, False]),
    ("shortcuts", {"setting": "imagenet"}, {"resnet-34-A": [25.03], "resnet-34-B": [24.52], "resnet-34-C": [24.19]},
     [True, True]),
    ("shortcuts", {"setting": "imagenet"}, {"resnet-34-A": [24], "resnet-34-B": [24.52], "resnet-34-C": [24.6]},
     [False, False]),
    ("preactivation", PREACT, {"resnet-20": [8, 8], "preact-20": [7, 8]}, [True]),
    ("preactivation", PREACT, {"resnet-20": [8, 8], "preact-20": [8, 8]}, [False]),
    ("preactivation", PREACT, {"resnet-20": [8, None], "preact-20": [None, 8]}, [None]),
    # tuned before scratch, tuned before frozen, frozen before scratch
    ("transfer", ONE_DEPTH, {"resnet-8-tuned": [5], "resnet-8-frozen": [6], "resnet-8-scratch": [7]},
     [True, True, True]),
    ("transfer", ONE_DEPTH, {"resnet-8-tuned": [7], "resnet-8-frozen": [6], "resnet-8-scratch": [5]},
     [False, False, False]),
    ("transfer", ONE_DEPTH, {"resnet-8-tuned": [5], "resnet-8-scratch": [7]}, [True, None, None]),
]  # fmt: skip


@pytest.mark.parametrize(("study", "fields", "errors", "holds"), TABLE)
def test_what_holds(study: str, fields: dict[str, Any], errors: Errors, holds: list[bool | None]) -> None:
    assert held(report(study, errors, **fields)) == holds


@pytest.mark.parametrize("study", ["degradation", "identity", "depth", "shortcuts", "preactivation", "transfer"])
def test_without_numbers_everything_is_open(study: str) -> None:
    [series] = [next(iter(expand(StudySpec.model_validate({"study": study, "setting": "small"})))).series]
    found = report(study, {series: [None]})
    assert found.findings
    assert set(held(found)) == {None}
    assert len(found.unfinished) == len(found.members)
    assert all(item.train_error is None for item in found.series)


def test_the_numbers_that_decide_are_told() -> None:
    found = report(
        "degradation", {"plain-20": [10, 12], "plain-56": [30, 40], "resnet-20": [8, 8], "resnet-56": [12, 10]}
    )
    plain, _, half = found.findings
    assert plain.numbers == {"difference_by_seed": {"0": 20, "1": 28}, "mean": 24, "seeds_that_agree": "2 of 2"}
    assert half.numbers == {"plain_gap": 24, "residual_gap": 3, "ratio": 8}
    assert found.series[0].train_error is not None
    assert (found.series[0].train_error.mean, round(found.series[0].train_error.std or 0, 4)) == (11, 1.4142)
    assert found.unfinished == ()


def test_seeds_that_a_finding_lacks_are_named() -> None:
    found = report("preactivation", {"resnet-20": [8, None, 8], "preact-20": [7, 7, None]}, depths=[20])
    [finding] = found.findings
    assert (finding.holds, finding.numbers["difference_by_seed"]) == (None, {"0": -1})
    assert finding.numbers["seeds_missing"] == "1, 2"
    assert found.unfinished == ("resnet-20/seed-1", "preact-20/seed-2")


def identity(kinds: Mapping[str, Sequence[float]]) -> StudyReport:
    """Of one seed; by kind the errors of: shallow, start, grown, continued, scratch."""
    names = ("8", "14-start", "14-grown", "8-continued", "14-scratch")
    return report(
        "identity",
        {f"{kind}-{name}": [error] for kind, values in kinds.items()
         for name, error in zip(names, values, strict=True)},
        "digits",
    )  # fmt: skip


def test_identity_compares_with_the_shallow_network() -> None:
    found = identity({"plain": (10, 10, 8, 9, 15), "resnet": (10, 10, 11, 11, 9)})
    told = {finding.statement: finding.holds for finding in found.findings}
    starts = "has the losses of"
    assert list(told.values()) == [True, True, True, True, False, True, True, True]
    assert [statement.split()[4] for statement in told if starts in statement] == ["plain-14-grown", "resnet-14-grown"]
    worse = identity({"plain": (10, 10, 11, 9, 8), "resnet": (10, 10, 9, 10, 9)})
    assert held(worse)[:6] == [False, False, False, False, True, True]


def test_a_start_must_evaluate_exactly_as_the_shallow_network() -> None:
    found = identity({"plain": (10, 10 + 2**-40, 8, 9, 15), "resnet": (10, 10, 8, 9, 9)})
    plain, residual = found.findings[-2:]
    assert (plain.holds, residual.holds) == (False, True)
    assert plain.numbers["largest_difference_in_nats_by_seed"] == {"0": 2**-40}


# Published figures


@pytest.mark.parametrize(
    ("study", "setting", "series", "error", "source"),
    [
        ("degradation", "cifar10", "resnet-20", 8.75, "He et al. 2015, table 6"),
        ("depth", "cifar10", "resnet-1202", 7.93, "He et al. 2015, table 6"),
        ("shortcuts", "cifar10", "resnet-110-A", 6.61, "He et al. 2016, table 1"),
        ("shortcuts", "cifar10", "resnet-110-C", 12.22, "He et al. 2016, table 1"),
        ("shortcuts", "cifar10", "resnet-110-dropout", None, "He et al. 2016, table 1"),
        ("preactivation", "cifar10", "preact-164", 5.46, "He et al. 2016, table 3"),
        ("degradation", "cifar10", "plain-110", None, "He et al. 2015, section 4.2"),
        ("degradation", "imagenet", "plain-34", 28.54, "He et al. 2015, table "),
        ("degradation", "imagenet", "resnet-34", 25.03, "He et al. 2015, table "),
        ("shortcuts", "imagenet", "resnet-34-B", 24.52, "He et al. 2015, table 3"),
        ("shortcuts", "imagenet", "resnet-34-C", 24.19, "He et al. 2015, table 3"),
        ("depth", "imagenet", "resnet-152", 21.43, "He et al. 2015, table 3"),
    ],
)
def test_published_figures(study: str, setting: str, series: str, error: float | None, source: str) -> None:
    found = published(StudySpec.model_validate({"study": study, "setting": setting}), series)
    assert found is not None
    assert (found.error, found.comparable) == (error, True)
    assert found.source.startswith(source)  # tables 2 and 3 have some networks in common
    assert found.metric
    assert found.error is not None or found.note
    other = published(
        StudySpec.model_validate({"study": study, "setting": setting, "overrides": {"training": {"epochs": 1}}}), series
    )
    assert other is not None
    assert not other.comparable


@pytest.mark.parametrize("setting", ["digits", "small", "fashion-mnist"])
def test_on_other_images_a_published_figure_is_not_comparable(setting: str) -> None:
    found = published(StudySpec.model_validate({"study": "degradation", "setting": setting}), "resnet-56")
    assert found is not None
    assert (found.error, found.comparable) == (6.97, False)


def test_a_figure_of_another_schedule_is_not_comparable_on_the_same_images() -> None:
    found = published(StudySpec.model_validate({"study": "degradation", "setting": "cifar10"}), "plain-56")
    assert found is not None
    assert (found.error, found.comparable) == (13.31, False)


def test_what_nobody_has_published_has_no_figure() -> None:
    for study, series in (("identity", "resnet-56-grown"), ("transfer", "resnet-20-tuned"), ("depth", "resnet-26")):
        assert published(StudySpec.model_validate({"study": study, "setting": "small"}), series) is None


def test_imagenets_ten_crop_errors_stand_beside_the_published_ones() -> None:
    spec = StudySpec.model_validate({"study": "depth", "setting": "imagenet", "seeds": [0], "depths": [18]})
    common: dict[str, Any] = {"series": "resnet-18", "seed": 0, "job": "job-1", "outcome": "succeeded"}
    [series] = summarise(
        StudyDocument(id="study-1", project="demo", spec=spec, members=(), created_at=T0),
        [
            Measured(key="resnet-18/seed-0", test_error=30.2, **common),
            Measured(key="resnet-18/seed-0/ten-crop", role="evaluation", test_error=27.9, **common),
        ],
    ).series
    assert series.test_error is not None
    assert series.protocol_error is not None
    assert (series.test_error.mean, series.protocol_error.mean, series.role) == (30.2, 27.9, "training")
