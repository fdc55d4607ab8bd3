"""A study's report: gathered from object storage alone, so it can be made again at any time."""

import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from resforge.metrics import POINT, EvalPoint, TrainPoint
from resforge.recipes import all_recipes
from resforge.s3 import ObjectStore
from resforge.storage import Document, JobPrefix, Result, Stream, read_stream
from resforge.studies.catalog import StudySpec

MOST_POINTS = 200  # of a curve


class StudyMember(Document):
    """A job of a study."""

    key: str
    series: str
    seed: int
    job: str


class StudyDocument(Document):
    """study.json: what a study consists of."""

    id: str
    project: str
    spec: StudySpec
    members: tuple[StudyMember, ...]
    created_at: datetime


class Measured(StudyMember):
    """What one job of a study measured. Errors are in percent; null where there is none yet."""

    outcome: str = Field(description="succeeded, failed, stopped, or unfinished.")
    train_error: float | None = Field(
        default=None, description="Of all training images, in evaluation mode, at the end."
    )
    running_train_error: float | None = Field(default=None, description="Mean over the last epoch's batches.")
    test_error: float | None = None
    train_curve: tuple[tuple[int, float], ...] = Field(default=(), description="Step and error of the batches before.")
    test_curve: tuple[tuple[int, float], ...] = ()
    seconds: float | None = Field(default=None, description="From the first to the last report of the training.")


class Spread(Document):
    """A figure over seeds; the deviation is the sample's, null for one seed."""

    mean: float
    std: float | None
    values: dict[str, float] = Field(description="By seed.")


class Series(Document):
    """The members of a study that differ by their seed alone."""

    name: str
    train_error: Spread | None = None
    running_train_error: Spread | None = None
    test_error: Spread | None = None
    published: float | None = Field(
        default=None, description="The error published for this network on CIFAR-10, in percent."
    )
    published_source: str = ""


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
    made_at: datetime


def gather(store: ObjectStore, study: StudyDocument) -> StudyReport:
    """Read what a study's jobs have left, and make its report."""
    return summarise(study, [_measure(store, study.project, member) for member in study.members])


def _measure(store: ObjectStore, project: str, member: StudyMember) -> Measured:
    prefix = JobPrefix.of(project, member.job)
    attempts = sorted(int(name) for name in store.list_folders(prefix.attempts) if name.isdecimal())
    result = None
    if attempts and (data := store.find(prefix.attempt(attempts[-1]).result)) is not None:
        result = Result.model_validate_json(data)
    points = [POINT.validate_json(line) for _, line in read_stream(store, prefix, Stream.METRICS, attempts)]
    return measured(member, points, "unfinished" if result is None else result.outcome)


def measured(member: StudyMember, points: Sequence[TrainPoint | EvalPoint], outcome: str) -> Measured:
    """The figures of one job. What a resumed run did again replaces what it repeats."""
    train = _last_by_step(point for point in points if isinstance(point, TrainPoint))
    held_out = _last_by_step(p for p in points if isinstance(p, EvalPoint) and p.split != "train")
    own = _last_by_step(p for p in points if isinstance(p, EvalPoint) and p.split == "train")
    last_epoch = [point for point in train if point.epoch == train[-1].epoch]
    done = outcome == "succeeded"
    return Measured(
        **member.model_dump(),
        outcome=outcome,
        train_error=_percent(own[-1].top1) if own and done else None,
        running_train_error=statistics.fmean(_percent(p.top1) for p in last_epoch) if last_epoch and done else None,
        test_error=_percent(held_out[-1].top1) if held_out and done else None,
        train_curve=_thin([(point.step, _percent(point.top1)) for point in train]),
        test_curve=_thin([(point.step, _percent(point.top1)) for point in held_out]),
        seconds=(train[-1].at - train[0].at).total_seconds() if len(train) > 1 else None,
    )


def _last_by_step(points: Any) -> list[Any]:
    return [point for _, point in sorted({point.step: point for point in points}.items())]


def _percent(accuracy: float) -> float:
    return 100 * (1 - accuracy)


def _thin(curve: list[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    every = -(-len(curve) // MOST_POINTS) if curve else 1
    return tuple(curve[::-1][::every][::-1])


def summarise(study: StudyDocument, members: Sequence[Measured]) -> StudyReport:
    """The report over what the jobs measured."""
    names = list(dict.fromkeys(member.series for member in members))
    series = {name: _series(name, [member for member in members if member.series == name]) for name in names}
    return StudyReport(
        id=study.id,
        title=f"{study.spec.study} ({study.spec.setting})",
        spec=study.spec,
        series=tuple(series.values()),
        findings=tuple(_FINDINGS[study.spec.study](series)) if study.spec.study in _FINDINGS else (),
        members=tuple(members),
        unfinished=tuple(member.key for member in members if member.outcome != "succeeded"),
        made_at=datetime.now(UTC),
    )


def _series(name: str, members: Sequence[Measured]) -> Series:
    found = all_recipes().get(f"cifar10/{name}")
    published = found.published if found else None
    return Series(
        name=name,
        train_error=_spread({member.seed: member.train_error for member in members}),
        running_train_error=_spread({member.seed: member.running_train_error for member in members}),
        test_error=_spread({member.seed: member.test_error for member in members}),
        published=published.error if published else None,
        published_source=published.source if published else "",
    )


def _spread(by_seed: dict[int, float | None]) -> Spread | None:
    values = {seed: value for seed, value in by_seed.items() if value is not None}
    if not values:
        return None
    return Spread(
        mean=statistics.fmean(values.values()),
        std=statistics.stdev(values.values()) if len(values) > 1 else None,
        values={str(seed): value for seed, value in values.items()},
    )


def _differences(series: dict[str, Series], more: str, less: str) -> dict[str, float]:
    """By seed, the training error of one series less that of another; for the seeds that both have."""
    one, other = series[more].train_error, series[less].train_error
    if one is None or other is None:
        return {}
    return {seed: value - other.values[seed] for seed, value in one.values.items() if seed in other.values}


def _depths(series: dict[str, Series], kind: str) -> list[int]:
    return sorted(int(name.split("-")[1]) for name in series if name.startswith(f"{kind}-"))


def _degradation(series: dict[str, Series]) -> list[Finding]:
    depths = _depths(series, "plain")
    shallow, deep = depths[0], depths[-1]
    plain = _differences(series, f"plain-{deep}", f"plain-{shallow}")
    residual = _differences(series, f"resnet-{deep}", f"resnet-{shallow}")
    mean_plain = statistics.fmean(plain.values()) if plain else None
    mean_residual = statistics.fmean(residual.values()) if residual else None
    known = mean_plain is not None and mean_residual is not None
    return [
        Finding(
            statement=f"plain-{deep} has a higher training error than plain-{shallow}, in every seed",
            holds=all(value > 0 for value in plain.values()) if plain else None,
            numbers={"difference_by_seed": plain, "mean": mean_plain},
        ),
        Finding(
            statement=f"from {shallow} to {deep} layers the residual gap is at most half of the plain one, in mean",
            holds=mean_residual <= mean_plain / 2 if mean_plain is not None and mean_residual is not None else None,
            numbers={
                "residual_difference_by_seed": residual,
                "residual_mean": mean_residual,
                "ratio": mean_plain / mean_residual if known and mean_plain and mean_residual else None,
            },
        ),
    ]


def _identity(series: dict[str, Series]) -> list[Finding]:
    findings = []
    for kind in ("plain", "resnet"):
        [shallow] = [name for name in series if name.startswith(kind) and name.count("-") == 1]
        [grown] = [name for name in series if name.startswith(kind) and name.endswith("-grown")]
        [scratch] = [name for name in series if name.startswith(kind) and name.endswith("-scratch")]
        for statement, name, sign in (
            (f"{grown}, trained on, has no higher training error than {shallow}, in mean", grown, 1),
            (f"{scratch} ends with a higher training error than {shallow}, in mean", scratch, -1),
        ):
            if kind == "resnet" and sign == -1:
                continue  # the paper says so of plain networks
            difference = _differences(series, name, shallow)
            mean = statistics.fmean(difference.values()) if difference else None
            holds = None if mean is None else (mean <= 0 if sign == 1 else mean > 0)
            findings.append(
                Finding(statement=statement, holds=holds, numbers={"difference_by_seed": difference, "mean": mean})
            )
    return findings


_FINDINGS: dict[str, Callable[[dict[str, Series]], list[Finding]]] = {
    "degradation": _degradation,
    "identity": _identity,
}
