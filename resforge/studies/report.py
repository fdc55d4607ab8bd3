"""A study's report: what its jobs measured, over seeds, beside what was published. Pure functions."""

import re
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import Field

from resforge.metrics import EvalPoint, TrainPoint
from resforge.reports import Report
from resforge.storage import Document, Result
from resforge.studies.catalog import Role, StudySpec
from resforge.studies.published import Published, published

MOST_POINTS = 200  # of a curve

_DEPTH = re.compile(r"-(\d+)")

P = TypeVar("P", TrainPoint, EvalPoint)


class StudyMember(Document):
    """A job of a study."""

    key: str
    series: str
    seed: int
    job: str
    role: Role = "training"


class StudyDocument(Document):
    """study.json: what a study consists of."""

    id: str
    project: str
    spec: StudySpec
    members: tuple[StudyMember, ...]
    created_at: datetime


class Measured(StudyMember):
    """What one job of a study measured. Errors are in percent; null where there is none yet."""

    outcome: str = Field(description="succeeded, failed, stopped, unfinished, deleted, or unreadable.")
    message: str = ""
    train_error: float | None = Field(
        default=None, description="Of all training images, in evaluation mode, at the end."
    )
    running_train_error: float | None = Field(default=None, description="Mean over the last epoch's batches.")
    test_error: float | None = Field(default=None, description="Of held-out images, at the end.")
    train_loss: float | None = Field(default=None, description="As train_error; mean cross-entropy in nats.")
    test_loss: float | None = Field(default=None, description="As test_error; mean cross-entropy in nats.")
    train_curve: tuple[tuple[int, float], ...] = Field(default=(), description="Step and error of the batches before.")
    test_curve: tuple[tuple[int, float], ...] = ()
    seconds: float | None = Field(default=None, description="From the first to the last report of the training.")
    images_per_second: float | None = Field(default=None, description="Median over the training's reports.")
    device: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    report: Report | None = Field(default=None, description="Of an evaluation or a reading.")


class Spread(Document):
    """A figure over seeds; the deviation is the sample's, null for one seed."""

    mean: float
    std: float | None
    values: dict[str, float] = Field(description="By seed.")


class Series(Document):
    """The members of a study that differ by their seed alone."""

    name: str
    depth: int | None = None
    role: Role = "training"
    train_error: Spread | None = None
    running_train_error: Spread | None = None
    test_error: Spread | None = None
    protocol_error: Spread | None = Field(
        default=None, description="By the protocol of the published figure, where the test error's is another."
    )
    seconds: Spread | None = None
    published: Published | None = None


class Finding(Document):
    """A statement of the study with the numbers that it rests on. `holds` is null where numbers are missing."""

    statement: str
    holds: bool | None
    numbers: dict[str, Any] = Field(default_factory=dict)


class StudyReport(Document):
    """A study's figures."""

    id: str
    title: str
    spec: StudySpec
    series: tuple[Series, ...]
    findings: tuple[Finding, ...]
    members: tuple[Measured, ...]
    unfinished: tuple[str, ...] = Field(description="Keys of the members that have not succeeded.")
    devices: tuple[str, ...] = Field(default=(), description="What the jobs ran on, where they say.")
    versions: dict[str, str] = Field(default_factory=dict)
    made_at: datetime


def measured(
    member: StudyMember,
    points: Sequence[TrainPoint | EvalPoint],
    result: Result | None,
    *,
    report: Report | None = None,
    device: str = "",
    versions: Mapping[str, str] | None = None,
) -> Measured:
    """The figures of one job. What a resumed run did again replaces what it repeats."""
    train = _once([point for point in points if isinstance(point, TrainPoint)])
    held_out = _once([p for p in points if isinstance(p, EvalPoint) and p.split != "train"])
    own = _once([p for p in points if isinstance(p, EvalPoint) and p.split == "train"])
    done = result is not None and result.outcome == "succeeded"
    training = done and member.role == "training"
    last_epoch = [point for point in train if point.epoch == train[-1].epoch] if training else []
    evaluated = report.values.get("top1_error") if report is not None and member.role == "evaluation" else None
    return Measured(
        **member.model_dump(),
        outcome="unfinished" if result is None else result.outcome,
        message="" if result is None or done else result.message,
        train_error=_percent(own[-1].top1) if own and done else None,
        running_train_error=statistics.fmean(_percent(p.top1) for p in last_epoch) if last_epoch else None,
        test_error=_percent(held_out[-1].top1) if held_out and done else None if evaluated is None else 100 * evaluated,
        train_loss=own[-1].loss if own and done else None,
        test_loss=held_out[-1].loss if held_out and done else None,
        train_curve=_thin([(point.step, _percent(point.top1)) for point in train]),
        test_curve=_thin([(point.step, _percent(point.top1)) for point in held_out]),
        seconds=(train[-1].at - train[0].at).total_seconds() if len(train) > 1 else None,
        images_per_second=statistics.median(point.images_per_second for point in train) if train else None,
        device=device,
        versions=dict(versions or {}),
        report=report,
    )


def _once(points: list[P]) -> list[P]:
    """Each step once: the last of what was recorded for it."""
    return [point for _, point in sorted({point.step: point for point in points}.items())]


def _percent(accuracy: float) -> float:
    return 100 * (1 - accuracy)


def _thin(curve: list[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """At most so many points, and the last. Curves of other lengths keep the same steps, or some of them."""
    every = 1
    while len(curve) > every * MOST_POINTS:
        every *= 2
    return (*curve[every - 1 : -1 : every], *curve[-1:])


def summarise(study: StudyDocument, members: Sequence[Measured]) -> StudyReport:
    """The report over what the jobs measured."""
    from resforge.studies.findings import findings

    names = list(dict.fromkeys(member.series for member in members))
    series = {name: _series(study.spec, [item for item in members if item.series == name]) for name in names}
    versions = {name: version for member in members for name, version in member.versions.items()}
    return StudyReport(
        id=study.id,
        title=f"{study.spec.study} ({study.spec.setting})",
        spec=study.spec,
        series=tuple(series.values()),
        findings=tuple(findings(study.spec, members, series)),
        members=tuple(members),
        unfinished=tuple(member.key for member in members if member.outcome != "succeeded"),
        devices=tuple(sorted({member.device for member in members} - {""})),
        versions=versions,
        made_at=datetime.now(UTC),
    )


def _series(spec: StudySpec, members: Sequence[Measured]) -> Series:
    first = members[0]
    trained = [member for member in members if member.role in ("training", "start")]

    def spread(name: str, among: Sequence[Measured] = trained) -> Spread | None:
        return spread_of({member.seed: getattr(member, name) for member in among})

    return Series(
        name=first.series,
        depth=int(number[1]) if (number := _DEPTH.search(first.series)) else None,
        role=first.role,
        train_error=spread("train_error"),
        running_train_error=spread("running_train_error"),
        test_error=spread("test_error"),
        protocol_error=spread("test_error", [member for member in members if member.role == "evaluation"]),
        seconds=spread("seconds"),
        published=published(spec, first.series),
    )


def spread_of(by_seed: Mapping[int, float | None]) -> Spread | None:
    """Mean and sample's deviation of the seeds that have a figure; None where none has."""
    values = {seed: value for seed, value in by_seed.items() if value is not None}
    if not values:
        return None
    return Spread(
        mean=statistics.fmean(values.values()),
        std=statistics.stdev(values.values()) if len(values) > 1 else None,
        values={str(seed): value for seed, value in values.items()},
    )
