"""What is wrong with a document that is no job: every bad field at once, in words that say what is accepted."""

import difflib
import json
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from resforge.spec.base import Part
from resforge.spec.jobs import SPECS, TrainSpec
from resforge.spec.readings import READINGS


class FieldProblem(Part):
    """One thing wrong with a document: where (an RFC 6901 JSON pointer), what, and what was given."""

    pointer: str
    message: str
    given: str | None = None


MOST_PROBLEMS = 100


def field_problems(error: ValidationError, root: type[BaseModel] | None = None) -> list[FieldProblem]:
    """Every bad field of a refused document at once, as JSON pointers with messages that say what is accepted.

    The first MOST_PROBLEMS of them: nobody reads more, and a document may hold a hundred thousand unknown fields.
    `root` is the model that the document was to be; left out: the kind of job that the error is titled with.
    """
    problems = []
    root = next((spec for spec in SPECS.values() if spec.__name__ == error.title), TrainSpec) if root is None else root
    for item in error.errors(include_url=False)[:MOST_PROBLEMS]:
        path, given = _untagged(root, [str(step) for step in item["loc"]]), item.get("input")
        if item["type"] == "default_factory_not_called":  # what it rests on is wrong, which is told of itself
            continue
        is_key = path[-1:] == ["[key]"]  # pydantic's mark for a bad key of a mapping
        if is_key:
            path.pop()
        # A model validator reports the model; it names the field itself.
        field = (item.get("ctx") or {}).get("field")
        if field:
            steps = str(field).split(".")
            path += steps
            given = _at(given, steps)
        pointer = "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in path)
        absent = item["type"] == "missing" or (field is not None and given is None)
        message = ("the key: " if is_key else "") + _message(root, item["type"], item["msg"], path)
        problems.append(FieldProblem(pointer=pointer, message=message, given=None if absent else _shorten(given)))
    return problems


def _message(root: type[BaseModel], kind: str, message: str, path: list[str]) -> str:
    """Pydantic's words, with what is accepted where they leave it out."""
    if kind == "extra_forbidden":
        accepted = list(_model(root, path[:-1]).model_fields)
        near = difflib.get_close_matches(path[-1], accepted, n=1)
        hint = f"; did you mean {near[0]}?" if near else ";"
        return f"unknown field{hint} accepted here: {', '.join(accepted)}"
    if kind == "missing":
        parent, inner = _model(root, path[:-1]), _model(root, path)
        info = parent.model_fields.get(path[-1])
        if inner is not parent:
            return f"this field is required: {_fields_of(inner)}"
        return f"this field is required: {info.description}" if info and info.description else "this field is required"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return f"expected a mapping whose name is one of {', '.join(READINGS)}"
    if kind in ("model_type", "model_attributes_type"):
        return f"expected {_fields_of(_model(root, path))}"
    return _of_form(path) if kind == "string_pattern_mismatch" else message


def _of_form(path: list[str]) -> str:
    """What a text of a fixed form looks like."""
    if path[-1:] == ["job"]:
        return "expected a job's id, such as job-abcdefgh2345"
    letters = "letters" if path[:1] == ["labels"] else "lower-case letters"
    return f"expected 1 to 63 {letters}, digits and inner - . _ / characters"


def _fields_of(model: type[BaseModel]) -> str:
    return f"a mapping with the fields {', '.join(model.model_fields)}"


def _model(root: type[BaseModel], path: list[str]) -> type[BaseModel]:
    """The model that `root` has at `path`, or the nearest around it."""
    model = root
    for step in path:
        info = model.model_fields.get(step)
        inner = _models(info.annotation) if info else []
        if inner:
            model = inner[0]
    return model


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models among what a field may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _untagged(root: type[BaseModel], path: list[str]) -> list[str]:
    """A location without the tags that pydantic puts behind a field which may be one of several models."""
    kept: list[str] = []
    model: type[BaseModel] | None = root
    steps = iter(path)
    for step in steps:
        kept.append(step)
        info = model.model_fields.get(step) if model else None
        found = _models(info.annotation) if info else []
        model = found[0] if found else None
        if len(found) > 1:  # its models are told apart by their names, which pydantic puts into the location
            tags = {str(item.model_fields["name"].default): item for item in found if "name" in item.model_fields}
            tag = next(steps, None)
            if tag in tags:
                model = tags[tag]
            elif tag is not None:
                kept.append(tag)
    return kept


def _at(document: object, steps: list[str]) -> object:
    for step in steps:
        document = document.get(step) if isinstance(document, dict) else getattr(document, step, None)
    return document


def _shorten(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
