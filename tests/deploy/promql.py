"""What the dashboards and the rules ask Prometheus, taken from the files that are shipped."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DASHBOARDS = ROOT / "helm" / "resforge" / "dashboards"
RULES = ROOT / "helm" / "resforge" / "rules" / "resforge.yml"
RUNBOOKS = ROOT / "docs" / "operations.md"


@dataclass(frozen=True)
class Query:
    """A query of a panel."""

    dashboard: str
    panel: str
    expr: str
    legend: str

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.panel}: {self.expr}"


def dashboards() -> dict[str, dict[str, Any]]:
    """The dashboards as they are shipped, by uid."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries() -> Iterator[Query]:
    for uid, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield Query(uid, panel["title"], target["expr"], target["legendFormat"])


def rules() -> list[dict[str, Any]]:
    """Every rule, recording and alerting."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def names(expr: str) -> set[str]:
    """The names of our series that an expression asks for."""
    return set(re.findall(r"\b(?:ray_)?resforge_\w+", expr))


def compared(expr: str) -> list[str]:
    """What an alert looks at: the sides of its comparisons that ask for series, without the comparison."""
    clauses = re.split(r"\s+and\s+", expr.strip())
    sides = [side.strip() for clause in clauses for side in re.split(r"\s(?:==|!=|>=|<=|>|<)\s", clause)]
    asked = [re.sub(r"^absent\((.*)\)$", r"\1", side, flags=re.S) for side in sides]
    return [side for side in asked if re.search(r"[a-z_:]\w*\{|resforge", side)]


def anchors() -> set[str]:
    """The anchors of docs/operations.md, made of its headings as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", RUNBOOKS.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
