"""The commands and how they are called. What they need is imported when they run, so that `--help` is quick."""

from pathlib import Path
from typing import Annotated

import typer

from resforge.cli import catalog, checkpoints, data, demo, jobs, reports, stack, studies, submit, watch
from resforge.cli.exits import HELP

app = typer.Typer(
    name="resforge",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=HELP,
)


def _version(asked: bool) -> None:
    if asked:
        from resforge import __version__

        typer.echo(f"resforge {__version__}")
        raise typer.Exit


@app.callback()
def resforge(
    context: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(help="The embedded stack's folder, which tells its address and key; else $RESFORGE_HOME."),
    ] = None,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Distributed training of deep residual networks as a service.

    RESFORGE_URL and RESFORGE_API_KEY name a service; without them the embedded stack of RESFORGE_HOME is used.
    """
    context.obj = home


_THE_STACK = "The embedded stack"
_JOBS = "Jobs"
_RESULTS = "What a job leaves"
_READINGS = "Looking into a trained network"
_CATALOG = "What there is to train"

for panel, commands in {
    _THE_STACK: (stack.up, stack.down, stack.status, demo.demo),
    _JOBS: (
        submit.submit,
        jobs.jobs,
        jobs.job,
        watch.watch,
        jobs.logs,
        jobs.events,
        jobs.metrics,
        jobs.attempts,
        jobs.cancel,
        jobs.delete,
    ),
    _RESULTS: (checkpoints.checkpoints, checkpoints.pull, checkpoints.plot),
    _READINGS: (reports.evaluate, reports.analyse, reports.report),
    _CATALOG: (catalog.recipes, catalog.models, catalog.datasets),
}.items():
    for function in commands:
        app.command(rich_help_panel=panel)(function)

app.add_typer(data.app, name="data", rich_help_panel=_CATALOG)
app.add_typer(studies.app, name="study", rich_help_panel=_READINGS)
