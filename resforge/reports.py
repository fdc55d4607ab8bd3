"""What evaluations, readings and ingests leave: a report of figures, and the pictures beside it.

A report lies under the attempt that made it, pictures first and `report.json` last, so one without it does not exist.
"""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from resforge.storage import Document, Part


class ReportedCheckpoint(Document):
    """A checkpoint that a report is about."""

    job: str
    attempt: int
    step: int = Field(description="Optimiser steps done.")
    model: str = Field(description="The network's usual name.")
    dataset: str = Field(description="The data set that it was trained on.")


class Report(Document):
    """report.json. `values` holds the figures; what each is, and its unit, stands in `units` under the same name."""

    format: Literal[1] = 1
    kind: Literal["evaluate", "analyse", "ingest"]
    name: str = Field(description="The protocol's views, the reading's name, or ingest.")
    title: str
    job: str
    attempt: int
    checkpoints: tuple[ReportedCheckpoint, ...]
    dataset: str = Field(description="The data set whose images were shown, or that was made.")
    split: str
    images: int = Field(description="How many images were shown, or ingested.")
    source: str = Field(default="", description="Where the method was published.")
    units: dict[str, str] = Field(default_factory=dict)
    values: dict[str, Any]
    pictures: tuple[Part, ...] = ()
    seconds: float = Field(description="How long it took, in seconds.")
    device: str
    versions: dict[str, str] = Field(default_factory=dict)
    made_at: datetime
