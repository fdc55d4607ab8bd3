"""Commands on studies: groups of jobs that answer one question, with one report."""

import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resforge.cli.connect import client
from resforge.cli.exits import Exit, Failure
from resforge.cli.output import AsJson, ago, clock, note, print_json, print_table
from resforge.cli.submit import lay_over

if TYPE_CHECKING:
    from rich.console import Console

    from resforge.client import Client
    from resforge.resources import StudyInfo, StudyMemberInfo
    from resforge.studies.published import Published
    from resforge.studies.report import Spread, StudyReport

app = typer.Typer(no_args_is_help=True, help="Studies: groups of jobs that answer one question, with one report.")
StudyId = Annotated[str, typer.Argument(help="The study's id.", show_default=False)]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Write the report as a page to this .html file.")]
# A log file should not get a line for every step.
_LINE_EVERY_S = 10.0
_MOST_RUNNING = 8  # jobs that are shown by themselves beside the whole study's progress


@app.command()
def kinds(as_json: AsJson = False) -> None:
    """List the studies and settings that there are. They come with this program, so no service is needed."""
    from resforge.studies import SETTINGS, STUDIES, settings_of

    if as_json:
        print_json({"studies": dict(STUDIES), "settings": dict(SETTINGS)})
        return
    print_table(
        ("study", "what it asks", "settings"),
        ((study, asks, ", ".join(settings_of(study))) for study, asks in STUDIES.items()),
    )
    print_table(("setting", "what it trains on"), SETTINGS.items())


@app.command()
def run(
    context: typer.Context,
    study: Annotated[str, typer.Argument(help="Which study: `resforge study kinds` lists them.")],
    setting: Annotated[str, typer.Option(help="On what: digits, small, fashion-mnist, cifar10 or imagenet.")] = "small",
    seeds: Annotated[int, typer.Option(min=1, max=32, help="So many seeds, from 0.")] = 3,
    depths: Annotated[
        list[int] | None, typer.Option("--depth", help="A depth to compare; give several. Left out: the setting's own.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Workers of every training.")] = None,
    source: Annotated[str | None, typer.Option(help="For transfer: the data set of the backbone.")] = None,
    target: Annotated[str | None, typer.Option(help="For transfer: the data set that it is taken to.")] = None,
    readings: Annotated[
        bool | None,
        typer.Option(
            "--readings/--no-readings", help="Look into the networks of the first seed. Left out: unless on digits."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of every training, such as training.epochs=2."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Submitting again with the same key gives the same study.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch/--no-watch", help="Follow it, and show its report.")] = True,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Run a study: show its jobs' progress, then its report. Leaving with Ctrl-C does not stop it."""
    _check_output(output)
    if output is not None and not watch:
        raise Failure("--output waits for the report, and --no-watch does not", Exit.USAGE)
    overrides: dict[str, Any] = {}
    for option in settings or []:
        lay_over(overrides, option)
    given = {
        "depths": depths or None, "workers": workers, "source": source, "target": target, "readings": readings,
        "name": name,
    }  # fmt: skip
    document = {
        "study": study, "setting": setting, "seeds": list(range(seeds)), "overrides": overrides,
        **{field: value for field, value in given.items() if value is not None},
    }  # fmt: skip
    _check(document)
    with client(context) as connected:
        found = connected.submit_study(document, idempotency_key=idempotency_key)
        if not watch:
            print_json(found) if as_json else typer.echo(
                f"study {found.id}: {len(found.members)} jobs; `resforge study watch {found.id}` shows their progress"
            )
            return
        note(f"study {found.id}: {len(found.members)} jobs")
        _watch(connected, found.id, output, as_json=as_json)


@app.command()
def watch(context: typer.Context, study_id: StudyId, output: Output = None, as_json: AsJson = False) -> None:
    """Show the progress of a study's jobs until they end, then its report. Leaving with Ctrl-C does not stop it."""
    _check_output(output)
    with client(context) as connected:
        _watch(connected, study_id, output, as_json=as_json)


@app.command("list")
def list_studies(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
    all_studies: Annotated[bool, typer.Option("--all", help="Every one, however many.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the project's studies, newest first."""
    with client(context) as connected:
        page = 50 if all_studies else min(limit, 50)
        found = list(islice(connected.studies(page_size=page), None if all_studies else limit))
    if as_json:
        print_json(found)
        return
    print_table(
        ("study", "name", "what", "setting", "state", ">done", "jobs", "created"),
        (
            (
                item.id,
                item.name or "",
                item.spec.study,
                item.spec.setting,
                str(item.state),
                f"{item.done:.0%}",
                _counts(item),
                ago(item.created_at),
            )
            for item in found
        ),
        empty="no studies",
    )


@app.command()
def show(context: typer.Context, study_id: StudyId, as_json: AsJson = False) -> None:
    """Show a study and its jobs."""
    with client(context) as connected:
        found = connected.study(study_id)
    if as_json:
        print_json(found)
        return
    typer.echo(
        f"{found.spec.study} ({found.spec.setting}) is {found.state}, {found.done:.0%} done; "
        f"submitted {clock(found.created_at)}"
    )
    print_table(
        ("key", "job", "state", "step", "message"),
        (
            (
                item.key,
                item.job,
                _where(item),
                _steps(item) or "-",
                item.message,
            )
            for item in found.members
        ),
    )


@app.command()
def report(context: typer.Context, study_id: StudyId, output: Output = None, as_json: AsJson = False) -> None:
    """Make a study's report anew from what its jobs have left, and show it."""
    _check_output(output)
    with client(context) as connected:
        _report(connected, study_id, output, as_json=as_json)


@app.command()
def cancel(context: typer.Context, study_id: StudyId, as_json: AsJson = False) -> None:
    """Ask for the end of every job of a study."""
    with client(context) as connected:
        found = connected.cancel_study(study_id)
    print_json(found) if as_json else typer.echo(f"study {found.id} is {found.state}: {_counts(found)}")


@app.command()
def delete(context: typer.Context, study_id: StudyId, as_json: AsJson = False) -> None:
    """Remove an ended study with its jobs, their checkpoints, logs and metrics, for good."""
    with client(context) as connected:
        deleted = connected.delete_study(study_id)
    if as_json:
        print_json(deleted)
    else:
        typer.echo(f"study {deleted.deleted} is removed with its jobs, {deleted.objects_removed} objects in all")


def _check(document: dict[str, Any]) -> None:
    """Refuse here what the API would refuse, with every bad field at once.

    Raises:
        Failure: the document is no study.
    """
    from pydantic import ValidationError

    from resforge.spec import field_problems
    from resforge.studies import StudySpec

    try:
        StudySpec.model_validate(document)
    except ValidationError as error:
        lines = ["this is no study that can run:"]
        lines += [f"  {problem.pointer or '/'}: {problem.message}" for problem in field_problems(error, StudySpec)]
        raise Failure("\n".join(lines), Exit.USAGE) from error


def _check_output(output: Path | None) -> None:
    if output is not None and output.suffix != ".html":
        raise Failure(f"{output}: expected a name that ends in .html", Exit.USAGE)


def _counts(study: "StudyInfo") -> str:
    told = [f"{count} {state}" for state, count in sorted(study.counts.items())]
    return ", ".join([*told, f"{study.deleted} deleted"] if study.deleted else told)


def _where(member: "StudyMemberInfo") -> str:
    if member.state is None:
        return "-"
    return f"{member.state} ({member.reason})" if member.reason else str(member.state)


def _steps(member: "StudyMemberInfo") -> str:
    return f"{member.progress.step}/{member.progress.total_steps}" if member.progress else ""


def _watch(connected: "Client", study_id: str, output: Path | None, *, as_json: bool) -> None:
    """Follow a study to its end, show its report, and leave with whether it succeeded."""
    try:
        found = _follow(connected, study_id)
    except KeyboardInterrupt:
        note(
            f"\nno longer watching; study {study_id} goes on. `resforge study watch {study_id}` looks again, "
            f"`resforge study cancel {study_id}` ends it"
        )
        raise typer.Exit(Exit.INTERRUPTED) from None
    _report(connected, study_id, output, as_json=as_json)
    raise typer.Exit(Exit.OK if found.state == "SUCCEEDED" else Exit.FAILED)


def _follow(connected: "Client", study_id: str) -> "StudyInfo":
    """Show progress on the terminal, or as lines, and return the study once all its jobs have ended."""
    from resforge.cli.output import console

    out = console(stderr=True)
    found = _follow_bars(connected, study_id, out) if out.is_terminal else _follow_lines(connected, study_id)
    note(f"study {found.id} {found.state}: {_counts(found)}")
    return found


def _follow_lines(connected: "Client", study_id: str) -> "StudyInfo":
    """A line each time that a job gets into another state, and in between how far those that run have come."""
    found, said, said_at = None, "", 0.0
    for found in connected.watch_study(study_id):
        counts = f"{found.state}: {_counts(found)}"
        if counts != said or time.monotonic() - said_at >= _LINE_EVERY_S:
            note("; ".join([f"{found.done:4.0%} {counts}", *map(_running_line, _running(found))]))
            said, said_at = counts, time.monotonic()
    assert found is not None  # `watch_study` gives the study at least once
    return found


def _running(study: "StudyInfo") -> "list[StudyMemberInfo]":
    """The jobs that are on their way, a few of them where there are many."""
    from resforge.jobs import TERMINAL

    live = (member for member in study.members if member.state is not None and member.state not in TERMINAL)
    return [member for member in live if member.progress][:_MOST_RUNNING]


def _running_line(member: "StudyMemberInfo") -> str:
    return f"{member.key} {_steps(member)}"


def _follow_bars(connected: "Client", study_id: str, out: "Console") -> "StudyInfo":
    """A bar for the whole study, and one for each job that runs."""
    from rich.progress import BarColumn, Progress, TaskID, TextColumn

    found, bars = None, dict[str, TaskID]()
    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[told]}")
    with Progress(*columns, console=out, auto_refresh=False) as progress:
        whole = progress.add_task("study", total=1.0, told="")
        for found in connected.watch_study(study_id):
            progress.update(whole, completed=found.done, told=f"{found.done:.0%}  {found.state}: {_counts(found)}")
            running = {member.key: member for member in _running(found)}
            for key in bars.keys() - running.keys():
                progress.remove_task(bars.pop(key))
            for key, member in running.items():
                if key not in bars:
                    bars[key] = progress.add_task(key, total=None, told="")
                assert member.progress is not None
                progress.update(
                    bars[key],
                    completed=member.progress.step,
                    total=member.progress.total_steps,
                    told=f"{_where(member)}  {_steps(member)}",
                )
            progress.refresh()
    assert found is not None
    return found


def _report(connected: "Client", study_id: str, output: Path | None, *, as_json: bool) -> None:
    found = connected.study_report(study_id)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(connected.study_page(study_id), encoding="utf-8")
    if as_json:
        print_json(found)
        return
    _print(found)
    if output is not None:
        typer.echo(f"page: {output}")


def _print(found: "StudyReport") -> None:
    protocol = any(item.protocol_error for item in found.series)
    print_table(
        (
            "network",
            ">training error %",
            ">of the last epoch",
            ">test error %",
            *((">10-crop error %",) if protocol else ()),
            ">published",
            "where",
        ),
        (
            (
                item.name,
                _figure(item.train_error),
                _figure(item.running_train_error),
                _figure(item.test_error),
                *((_figure(item.protocol_error),) if protocol else ()),
                *_published(item.published),
            )
            for item in found.series
        ),
    )
    for item in found.findings:
        word = "not known yet" if item.holds is None else "holds" if item.holds else "does not hold"
        missing = item.numbers.get("seeds_missing")
        typer.echo(f"{word}: {item.statement}" + (f" (without seeds {missing})" if missing else ""))
    if found.devices:
        typer.echo(f"ran on: {', '.join(found.devices)}")
    if found.unfinished:
        typer.echo(f"not finished: {', '.join(found.unfinished)}")


def _published(found: "Published | None") -> tuple[str, str]:
    if found is None:
        return "-", ""
    figure = found.note if found.error is None else f"{found.error:.2f}"
    metric = found.metric if found.comparable else f"{found.metric}, not comparable"
    return figure, f"{found.source} ({metric})"


def _figure(spread: "Spread | None") -> str:
    if spread is None:
        return "-"
    return f"{spread.mean:.2f}" if spread.std is None else f"{spread.mean:.2f} ± {spread.std:.2f}"
