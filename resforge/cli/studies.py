"""Commands on studies: groups of jobs that answer one question, with one report."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resforge.cli.connect import client
from resforge.cli.exits import Exit, Failure
from resforge.cli.output import AsJson, ago, clock, note, print_json, print_table
from resforge.cli.submit import lay_over

if TYPE_CHECKING:
    from resforge.client import Client
    from resforge.resources import StudyInfo
    from resforge.studies.report import Spread, StudyReport

app = typer.Typer(no_args_is_help=True, help="Studies: groups of jobs that answer one question, with one report.")
StudyId = Annotated[str, typer.Argument(help="The study's id.", show_default=False)]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Write the report as a page to this .html file.")]
_EVERY_S = 2.0


@app.command()
def kinds(as_json: AsJson = False) -> None:
    """List the studies and settings that there are. They come with this program, so no service is needed."""
    from resforge.studies import SETTINGS, STUDIES

    if as_json:
        print_json({"studies": dict(STUDIES), "settings": dict(SETTINGS)})
        return
    print_table(("study", "what it asks"), STUDIES.items())
    print_table(("setting", "what it trains on"), SETTINGS.items())


@app.command()
def run(
    context: typer.Context,
    study: Annotated[str, typer.Argument(help="Which study: `resforge study kinds` lists them.")],
    setting: Annotated[str, typer.Option(help="On what: digits, small, fashion-mnist or cifar10.")] = "small",
    seeds: Annotated[int, typer.Option(min=1, max=32, help="So many seeds, from 0.")] = 3,
    depths: Annotated[list[int] | None, typer.Option("--depth", help="A depth to compare; give several.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of every training, such as training.epochs=2."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch/--no-watch", help="Follow it, and show its report.")] = True,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Run a study. Leaving with Ctrl-C does not stop it."""
    overrides: dict[str, Any] = {}
    for option in settings or []:
        lay_over(overrides, option)
    document = {"study": study, "setting": setting, "seeds": list(range(seeds)), "overrides": overrides}
    if depths:
        document["depths"] = depths
    with client(context) as connected:
        found = connected.submit_study(document)
        if not watch:
            print_json(found) if as_json else typer.echo(
                f"study {found.id}: {len(found.members)} jobs; `resforge study report {found.id}`"
            )
            return
        note(f"study {found.id}: {len(found.members)} jobs")
        try:
            found = _follow(connected, found.id)
        except KeyboardInterrupt:
            note(f"\nno longer watching; study {found.id} goes on. `resforge study cancel {found.id}` ends it")
            raise typer.Exit(Exit.INTERRUPTED) from None
        _report(connected, found.id, output, as_json=as_json)
    raise typer.Exit(Exit.OK if found.state == "SUCCEEDED" else Exit.FAILED)


@app.command("list")
def list_studies(context: typer.Context, as_json: AsJson = False) -> None:
    """List the project's studies, newest first."""
    with client(context) as connected:
        found = connected.studies()
    if as_json:
        print_json(found)
        return
    print_table(
        ("study", "what", "setting", "state", "jobs", "created"),
        (
            (item.id, item.spec.study, item.spec.setting, str(item.state), _counts(item), ago(item.created_at))
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
    typer.echo(f"{found.spec.study} ({found.spec.setting}) is {found.state}, since {clock(found.created_at)}")
    print_table(
        ("key", "job", "state", "step", "message"),
        (
            (
                item.key,
                item.job,
                str(item.state or "-"),
                f"{item.progress.step}/{item.progress.total_steps}" if item.progress else "-",
                item.message,
            )
            for item in found.members
        ),
    )


@app.command()
def report(context: typer.Context, study_id: StudyId, output: Output = None, as_json: AsJson = False) -> None:
    """Make a study's report anew from what its jobs have left, and show it."""
    with client(context) as connected:
        _report(connected, study_id, output, as_json=as_json)


@app.command()
def cancel(context: typer.Context, study_id: StudyId, as_json: AsJson = False) -> None:
    """Ask for the end of every job of a study."""
    with client(context) as connected:
        found = connected.cancel_study(study_id)
    print_json(found) if as_json else typer.echo(f"study {found.id} is {found.state}: {_counts(found)}")


def _counts(study: "StudyInfo") -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(study.counts.items()))


def _follow(connected: "Client", study_id: str) -> "StudyInfo":
    """Say how many jobs are in which state, each time that it changes, until all have ended."""
    said = ""
    while True:
        found = connected.study(study_id)
        if (text := f"{found.state}: {_counts(found)}") != said:
            note(text)
            said = text
        if found.ended:
            return found
        time.sleep(_EVERY_S)


def _report(connected: "Client", study_id: str, output: Path | None, *, as_json: bool) -> None:
    if output is not None and output.suffix != ".html":
        raise Failure(f"{output}: expected a name that ends in .html", Exit.USAGE)
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
    print_table(
        ("network", ">training error %", ">of the last epoch", ">test error %", ">published (CIFAR-10)"),
        (
            (
                item.name,
                _figure(item.train_error),
                _figure(item.running_train_error),
                _figure(item.test_error),
                "-" if item.published is None else f"{item.published:.2f}",
            )
            for item in found.series
        ),
    )
    for item in found.findings:
        word = "not known yet" if item.holds is None else "holds" if item.holds else "does not hold"
        typer.echo(f"{word}: {item.statement}")
    if found.unfinished:
        typer.echo(f"not finished: {', '.join(found.unfinished)}")


def _figure(spread: "Spread | None") -> str:
    if spread is None:
        return "-"
    return f"{spread.mean:.2f}" if spread.std is None else f"{spread.mean:.2f} ± {spread.std:.2f}"
