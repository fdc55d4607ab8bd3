"""The chart's options, read from its schema: each leaf with where it is and what it may be."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.deploy.helm import CHART

SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Option:
    """One leaf. An index in its path is 0: the first element of a list."""

    path: Path
    schema: dict[str, Any]

    @property
    def name(self) -> str:
        return ".".join(map(str, self.path))

    @property
    def pointer(self) -> str:
        """As Helm's messages name it."""
        return "/" + "/".join(map(str, self.path))


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with what it refers to beside what it says itself."""
    if "$ref" not in schema:
        return schema
    return {**resolved(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]), **schema}


def options(schema: dict[str, Any] = SCHEMA, path: Path = ()) -> Iterator[Option]:
    """Every leaf: a scalar, a map of any keys, a list of scalars, or a choice of forms."""
    schema = resolved(schema)
    if "properties" in schema:
        for name, part in schema["properties"].items():
            yield from options(part, (*path, name))
    elif schema.get("type") == "array" and "properties" in resolved(schema["items"]):
        yield from options(schema["items"], (*path, 0))
    else:
        yield Option(path, schema)


def nodes(schema: dict[str, Any] = SCHEMA, path: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every schema in the schema, by its place in the document."""
    yield path, schema
    for key in ("properties", "$defs"):
        for name, part in schema.get(key, {}).items():
            yield from nodes(part, (*path, key, name))
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], (*path, key))
    for index, part in enumerate(schema.get("oneOf", ())):
        yield from nodes(part, (*path, "oneOf", index))


def get(values: Any, path: Path) -> Any:
    """What stands there; None where nothing does."""
    for step in path:
        try:
            values = values[step]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def put(values: Any, path: Path, value: Any) -> Any:
    """A copy in which that stands there."""
    if not path:
        return value
    step, rest = path[0], path[1:]
    if isinstance(step, int):
        items = list(values or [{}])
        items[step] = put(items[step], rest, value)
        return items
    return {**(values or {}), step: put((values or {}).get(step), rest, value)}


def others(option: Option, now: Any) -> list[Any]:
    """Acceptable values that differ from the present one, one at least."""
    schema = option.schema
    if "examples" in schema:
        found = schema["examples"]
    elif "enum" in schema:
        found = [item for item in schema["enum"] if item != now][:1]
    elif "boolean" in schema["type"]:
        found = [not now]
    else:
        found = [(now or schema.get("minimum", 0)) + 1]
    return [item for item in found if item != now]


def wrong(option: Option) -> Any:
    """A value that the option's schema must refuse."""
    kinds = option.schema.get("type", "string" if "enum" in option.schema else "object")
    # No option takes all of these.
    return {"a": "list"} if "array" in kinds else ["a", "list"]
