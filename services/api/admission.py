"""From a posted document to a JobSpec and its dataset: what the spec says itself, and what only the operator knows or
the project's other jobs tell."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import ValidationError

from resforge.jobs import TERMINAL, DatasetInfo, JobState
from resforge.recipes import UnknownRecipe, expand
from resforge.spec import (
    AnalyseSpec,
    AnySpec,
    CheckpointRef,
    EvaluateSpec,
    FieldProblem,
    IngestSpec,
    TrainSpec,
    parse_job,
)
from services.api.checkpoints import stored
from services.api.context import Services
from services.api.ingests import dataset_to_be, place_problems
from services.api.problems import InvalidSpec, spec_problems
from services.errors import DatasetNotFound, JobNotFound
from services.launchers.base import gang_of
from services.launchers.pools import Pools
from services.store.store import JobStore

PHOTOGRAPHS = ("folder", "shards")  # formats of images of any size


def request_hash(document: Mapping[str, Any]) -> str:
    """SHA-256 of a document, the same for JSON and YAML and for any order of its fields."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()


def parse_spec(document: dict[str, Any]) -> AnySpec:
    """A whole spec, or a recipe's name with overrides, as a JobSpec.

    Raises:
        InvalidSpec: with every bad field.
    """
    try:
        return parse_job(expand(document))
    except UnknownRecipe as error:
        problem = FieldProblem(pointer="/recipe", message=str(error), given=json.dumps(document["recipe"]))
        raise InvalidSpec([problem]) from error
    except ValidationError as error:
        raise spec_problems(error) from error


@dataclass(frozen=True)
class Trained:
    """A training job whose checkpoint another job names: what it trains, on what, and how far it has come."""

    spec: TrainSpec
    dataset: DatasetInfo
    state: JobState


class Look(Protocol):
    """Finds the job that a reference names."""

    def __call__(self, reference: CheckpointRef) -> Trained:
        """Raises NotASource with what is wrong."""
        ...


class NotASource(Exception):
    """The reference names no checkpoint that can be had. The message says why."""


def sources_in(services: Services, project: str, siblings: Mapping[str, Trained] | None = None) -> Look:
    """Look for sources among a project's jobs, and among those that are submitted together with this one."""

    def look(reference: CheckpointRef) -> Trained:
        if siblings and reference.job in siblings:
            return siblings[reference.job]
        try:
            job, dataset = services.store.source(project, reference.job)
        except JobNotFound as error:
            raise NotASource(str(error)) from error
        if not isinstance(job.spec, TrainSpec):
            raise NotASource(f"job {job.id} is of the kind {job.spec.kind}, and only training leaves checkpoints")
        if not reference.ends_first:
            steps = {item.manifest.step for item in stored(services.objects, job)}
            if reference.which not in steps:
                known = ", ".join(map(str, sorted(steps)[-20:]))
                there = f"its newest are those of {known}" if steps else "it has none"
                raise NotASource(f"job {job.id} has no checkpoint of step {reference.which}; {there}")
        elif job.state in TERMINAL and job.state is not JobState.SUCCEEDED:
            raise NotASource(
                f"job {job.id} is {job.state}, so its {reference.which} checkpoint is of no finished training; "
                "name one by its step"
            )
        return Trained(job.spec, dataset, job.state)

    return look


def admit(
    spec: AnySpec, services: Services, project: str, look: Look, *, idempotency_key: str | None = None
) -> DatasetInfo:
    """The data set that a job works on, once the spec is known to fit it, the jobs that it builds upon and its pool.

    Raises:
        DatasetNameTaken: an ingest's data set is to have a name that is not the project's.
        InvalidSpec: the data set is not registered, a source is none, or something does not fit; with every bad field.
    """
    found = pool_problems(spec, services.pools)
    if isinstance(spec, IngestSpec):
        found += place_problems(spec, project, services.settings, services.store, idempotency_key)
        if found:
            raise InvalidSpec(found)
        return dataset_to_be(spec, project, services.store)
    trained = [_source(pointer, reference, look, found) for pointer, reference in _references(spec)]
    dataset = _dataset(spec, trained, services.store, project, found)
    if found or dataset is None:
        raise InvalidSpec(found)
    if isinstance(spec, TrainSpec):
        found += fit_problems(spec, dataset)
        if spec.init is not None and trained[0] is not None:
            found += init_problems(spec, dataset, trained[0])
    else:
        found += shown_problems(spec, dataset, [item for item in trained if item is not None])
    if found:
        raise InvalidSpec(found)
    return dataset


def _references(spec: TrainSpec | EvaluateSpec | AnalyseSpec) -> list[tuple[str, CheckpointRef]]:
    """Every checkpoint that a spec names, with the pointer to it."""
    if isinstance(spec, EvaluateSpec):
        return [(f"/checkpoints/{index}", item) for index, item in enumerate(spec.checkpoints)]
    if isinstance(spec, AnalyseSpec):
        return [("/checkpoint", spec.checkpoint)]
    return [] if spec.init is None else [("/init/checkpoint", spec.init.checkpoint)]


def _source(pointer: str, reference: CheckpointRef, look: Look, found: list[FieldProblem]) -> Trained | None:
    try:
        return look(reference)
    except NotASource as error:
        field = "job" if reference.ends_first else "which"
        found.append(_problem(f"{pointer}/{field}", str(error), getattr(reference, field)))
        return None


def _dataset(
    spec: TrainSpec | EvaluateSpec | AnalyseSpec,
    trained: Sequence[Trained | None],
    store: JobStore,
    project: str,
    found: list[FieldProblem],
) -> DatasetInfo | None:
    """The data set that is named, or that of the first source."""
    name = spec.data.dataset
    if name is None:
        return trained[0].dataset if trained[0] is not None else None
    try:
        return store.dataset(name, project)
    except DatasetNotFound:
        names = ", ".join(item.name for item in store.datasets(project)) or "none"
        message = f"no dataset of that name is registered; registered are: {names}"
        found.append(_problem("/data/dataset", message, name))
        return None


def pool_problems(spec: AnySpec, pools: Pools | None) -> list[FieldProblem]:
    """Why a job can never run in the pool that it names."""
    name = spec.scaling.pool
    if pools is None:
        message = "this service has no pools, and runs every job on its one cluster; leave the field out"
        return [] if name is None else [_problem("/scaling/pool", message, name)]
    problem = pools.problem(name, gang_of(spec))
    return [] if problem is None else [problem]


def fit_problems(spec: TrainSpec, dataset: DatasetInfo) -> list[FieldProblem]:
    """Everything about a training that does not fit its data set."""
    problems = []
    try:
        size = spec.data.image_size(dataset.image_size)
    except ValueError as error:
        return [_problem("/data/downscale", str(error), spec.data.downscale)]
    try:
        spec.model.network(channels=dataset.channels, classes=dataset.classes, image_size=size)
    except ValueError as error:
        message = f"{spec.model.name} does not fit the dataset {dataset.name}: {error}"
        problems.append(_problem("/model", message, spec.model.name))
    if spec.data.augment.colour and dataset.channels != 3:
        message = f"colours are shifted in RGB images, and those of {dataset.name} have {dataset.channels} channel(s)"
        problems.append(_problem("/data/augment/colour", message, spec.data.augment.colour))
    for name in ("scale", "area"):
        if getattr(spec.data.augment, name) and dataset.format not in PHOTOGRAPHS:
            message = f"it is for photographs, and {dataset.name} holds images of one size, for which there is pad"
            problems.append(_problem(f"/data/augment/{name}", message, getattr(spec.data.augment, name)))
    first = spec.training.progressive_from
    if first is not None and first > size:
        message = f"images can't begin larger than the network's input, which has {size} pixels"
        problems.append(_problem("/training/progressive_from", message, first))
    known = dataset.train_images
    left = None if known is None else known - spec.data.validation
    if left is not None and left < 1:
        message = f"nothing is left to train on; the training set has {known:,} images"
        return [*problems, _problem("/data/validation", message, spec.data.validation)]
    sizes = [size for size in (left, spec.data.train_limit) if size is not None]
    batch = spec.training.global_batch
    if sizes and batch > min(sizes):
        message = f"a batch can't be larger than the training set, which has {min(sizes):,} images"
        problems.append(_problem("/training/global_batch", message, batch))
    return problems


def init_problems(spec: TrainSpec, dataset: DatasetInfo, source: Trained) -> list[FieldProblem]:
    """Everything about the weights to begin with that does not fit the network to train."""
    assert spec.init is not None
    mine, theirs = spec.model, source.spec.model
    problems = []
    if source.dataset.channels != dataset.channels:
        message = (
            f"job {spec.init.checkpoint.job} was trained on images of {source.dataset.channels} channel(s), and "
            f"{dataset.name} has {dataset.channels}"
        )
        problems.append(_problem("/init/checkpoint/job", message, spec.init.checkpoint.job))
    if spec.init.take != "backbone" and source.dataset.classes != dataset.classes:
        message = (
            f"the classifier was trained for {source.dataset.classes} classes, and {dataset.name} has "
            f"{dataset.classes}; take: backbone leaves it behind"
        )
        problems.append(_problem("/init/take", message, spec.init.take))
    if spec.init.take == "grow":
        if not mine.grows:
            message = (
                f"no identity blocks can be appended to {mine.name}; accepted are identity shortcuts (A, B) and "
                "plain networks without bottlenecks"
            )
            return [*problems, _problem("/init/take", message, spec.init.take)]
        if theirs.depth >= mine.depth or theirs != mine.model_copy(update={"depth": theirs.depth}):
            message = f"{theirs.name} does not grow into {mine.name}: the networks may differ in a larger depth alone"
            problems.append(_problem("/init/take", message, spec.init.take))
    elif theirs != mine:
        message = f"the weights are those of {theirs.name}, and this network is {mine.name}"
        problems.append(_problem("/init/take", message, spec.init.take))
    return problems


def shown_problems(
    spec: EvaluateSpec | AnalyseSpec, dataset: DatasetInfo, sources: Sequence[Trained]
) -> list[FieldProblem]:
    """Every network that can't be shown this data set's images."""
    problems = []
    for (pointer, reference), source in zip(_references(spec), sources, strict=True):
        theirs = source.dataset
        if (theirs.channels, theirs.classes) != (dataset.channels, dataset.classes):
            message = (
                f"job {reference.job} was trained for images of {theirs.channels} channel(s) and {theirs.classes} "
                f"classes, and {dataset.name} has {dataset.channels} and {dataset.classes}"
            )
            problems.append(_problem(f"{pointer}/job", message, reference.job))
        if theirs.image_size != dataset.image_size:
            message = (
                f"job {reference.job} was trained on images of {theirs.image_size} pixels, and those of "
                f"{dataset.name} have {dataset.image_size}"
            )
            problems.append(_problem(f"{pointer}/job", message, reference.job))
        if spec.data.split == "validation" and not source.spec.data.validation:
            message = f"job {reference.job} held no images back (its data.validation is 0)"
            problems.append(_problem("/data/split", message, spec.data.split))
    if spec.data.split == "validation" and not problems:
        held_back = {(item.dataset.name, item.spec.data.validation, item.spec.training.seed) for item in sources}
        if len(held_back) > 1:  # what one held back, another was trained on
            message = (
                "these jobs held different images back; an ensemble's have the same dataset, data.validation and "
                "training.seed, or are shown the test images"
            )
            problems.append(_problem("/data/split", message, spec.data.split))
    return problems


def _problem(pointer: str, message: str, given: object) -> FieldProblem:
    return FieldProblem(pointer=pointer, message=message, given=json.dumps(given))
