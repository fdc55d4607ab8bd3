"""Printing: tables for people, JSON for programs."""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JobId = Annotated[str, typer.Argument(help="The job's id.", show_default=False)]

# A pipe has no width, and a cut-off id is of no use to a script.
_WIDTH_OF_A_PIPE = 250


def console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=_WIDTH_OF_A_PIPE)


def print_json(value: "BaseModel | Iterable[BaseModel] | Any") -> None:
    typer.echo(json.dumps(_plain(value), indent=2))


def print_line(value: "BaseModel") -> None:
    """One JSON object on one line, for streams."""
    typer.echo(value.model_dump_json())


def _plain(value: Any) -> Any:
    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str = "none", spare: Sequence[str] = ()
) -> None:
    """A table; `empty` is said where there are no rows. Columns whose name begins with > are set flush right.

    Ids in the first column are there to be copied, and never folded. Where a terminal is too narrow, the `spare`
    columns are left out, one after the other.
    """
    from rich import box
    from rich.table import Table

    told: list[Sequence[str]] = [columns, *rows]
    width = console().width
    for name in spare:
        if sum(max(map(len, column)) + 3 for column in zip(*told, strict=True)) <= width:
            break
        place = told[0].index(name)
        told = [[*row[:place], *row[place + 1 :]] for row in told]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(told[0]):
        table.add_column(
            name.removeprefix(">"),
            justify="right" if name.startswith(">") else "left",
            overflow="fold",
            no_wrap=place == 0,
        )
    for row in told[1:]:
        table.add_row(*(_escape(cell) for cell in row))
    if not table.row_count:
        typer.echo(empty)
        return
    console().print(table)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def clock(at: datetime | None) -> str:
    """The local time of day, with the date where it is another day's."""
    if at is None:
        return "-"
    local = at.astimezone()
    return local.strftime("%H:%M:%S" if local.date() == datetime.now().astimezone().date() else "%Y-%m-%d %H:%M")


def ago(at: datetime) -> str:
    return f"{duration((datetime.now(UTC) - at).total_seconds())} ago"


def duration(seconds: float | None) -> str:
    """Such as 42s, 3m20s, 2h05m."""
    if seconds is None:
        return "-"
    total = int(timedelta(seconds=max(0.0, seconds)).total_seconds())
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60:02d}s"
    return f"{total // 3600}h{total % 3600 // 60:02d}m"


def size(count: int) -> str:
    """Such as 1.1 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def note(text: str) -> None:
    """Something for the person, kept out of what a program reads."""
    sys.stderr.write(text + "\n")
