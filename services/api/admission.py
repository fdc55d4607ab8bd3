"""From a posted document to a JobSpec and its dataset: what the spec says itself, and what only the operator knows."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from resforge.jobs import DatasetInfo
from resforge.recipes import UnknownRecipe, expand
from resforge.spec import FieldProblem, JobSpec, TrainSpec, parse_job
from services.api.problems import InvalidSpec, spec_problems
from services.errors import DatasetNotFound
from services.store.store import JobStore


def request_hash(document: Mapping[str, Any]) -> str:
    """SHA-256 of a document, the same for JSON and YAML and for any order of its fields."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()


def parse_spec(document: dict[str, Any]) -> JobSpec:
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


def admit(spec: TrainSpec, store: JobStore) -> DatasetInfo:
    """The dataset that the spec names, once the spec is known to fit it.

    Raises:
        InvalidSpec: the dataset is not registered, or the network or the batch does not fit it.
    """
    try:
        dataset = store.dataset(spec.data.dataset)
    except DatasetNotFound as error:
        names = ", ".join(item.name for item in store.datasets()) or "none"
        message = f"no dataset of that name is registered; registered are: {names}"
        raise InvalidSpec([_problem("/data/dataset", message, spec.data.dataset)]) from error
    problems = fit_problems(spec, dataset)
    if problems:
        raise InvalidSpec(problems)
    return dataset


def fit_problems(spec: TrainSpec, dataset: DatasetInfo) -> list[FieldProblem]:
    """Everything about the spec that does not fit the dataset."""
    problems = []
    try:
        spec.model.network(channels=dataset.channels, classes=dataset.classes, image_size=dataset.image_size)
    except ValueError as error:
        message = f"{spec.model.name} does not fit the dataset {dataset.name}: {error}"
        problems.append(_problem("/model", message, spec.model.name))
    sizes = [size for size in (dataset.train_images, spec.data.train_limit) if size is not None]
    batch = spec.training.global_batch
    if sizes and batch > min(sizes):
        message = f"a batch can't be larger than the training set, which has {min(sizes):,} images"
        problems.append(_problem("/training/global_batch", message, batch))
    return problems


def _problem(pointer: str, message: str, given: object) -> FieldProblem:
    return FieldProblem(pointer=pointer, message=message, given=json.dumps(given))
