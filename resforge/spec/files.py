"""Reading a job from a file."""

import json
from pathlib import Path
from typing import Any

import yaml


class SpecFileError(Exception):
    """{path} could not be read as a job: {detail}"""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(f"{path} could not be read as a job: {detail}")


def read_document(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML file that holds one mapping.

    Raises:
        SpecFileError: the file is absent, is neither JSON nor YAML, or holds something else than a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        try:
            document = json.loads(text)  # not by YAML, which takes 1e-4 for a string and refuses tabs
        except ValueError:
            document = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # a date that is none is a ValueError
        raise SpecFileError(path, str(error)) from error
    if not isinstance(document, dict):
        raise SpecFileError(path, f"expected a mapping with the fields of a job, found {type(document).__name__}")
    return document
