"""Commands that look into trained networks: evaluating and reading checkpoints, and what that has found."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resforge.cli.connect import client
from resforge.cli.exits import Exit, Failure
from resforge.cli.output import AsJson, JobId, note, print_json, print_table
from resforge.cli.submit import check, lay_over

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resforge.client import Client
    from resforge.jobs import Job
    from resforge.resources import JobReport

Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="One more field of the job. The value is YAML.")
]
Dataset = Annotated[
    str | None, typer.Option(help="Show these images; left out: those of the data set that was trained on.")
]
Split = Annotated[str, typer.Option(help="test, train, or validation.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many images.")]
Watch = Annotated[bool, typer.Option("--watch/--no-watch", help="Wait for the report and show it.")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="A folder to write the report and its pictures to.")
]


def evaluate(
    context: typer.Context,
    checkpoints: Annotated[
        list[str],
        typer.Argument(metavar="JOB[:WHICH]...", help="best, latest or a step of a job; several are an ensemble."),
    ],
    views: Annotated[
        str | None, typer.Option(help="centre, ten-crop, or multi-scale.", show_default="the recipe's, or centre")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="An evaluation that was published, such as imagenet/resnet-50/ten-crop.")
    ] = None,
    dataset: Dataset = None,
    split: Split = "test",
    limit: Limit = None,
    settings: Settings = None,
    watch: Watch = True,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate checkpoints on the service, under one of the paper's protocols."""
    _must_evaluate(recipe)
    document: dict[str, Any] = {
        "kind": "evaluate",
        "checkpoints": [reference(item) for item in checkpoints],
        "data": _data(dataset, split, limit),
        **({} if views is None else {"protocol": {"views": views}}),
        **({} if recipe is None else {"recipe": recipe}),
    }
    _run(context, document, settings, watch=watch, output=output, as_json=as_json)


def analyse(
    context: typer.Context,
    checkpoint: Annotated[str, typer.Argument(metavar="JOB[:WHICH]", help="best, latest or a step of a job.")],
    reading: Annotated[
        str,
        typer.Argument(help="responses, gradients, travel, lesions, paths, landscape, ode, or smoothing."),
    ],
    dataset: Dataset = None,
    split: Split = "test",
    limit: Limit = None,
    settings: Settings = None,
    workers: Annotated[int, typer.Option(min=1, help="Spread a landscape over so many Ray tasks.")] = 1,
    watch: Watch = True,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Read a trained network: what its layers do, how gradients flow, what it survives. Leaves figures and a picture.

    Fields of the reading are set by --set, such as --set reading.points=51.
    """
    document: dict[str, Any] = {
        "kind": "analyse",
        "checkpoint": reference(checkpoint),
        "reading": {"name": reading},
        "data": _data(dataset, split, limit),
        "scaling": {"workers": workers},
    }
    _run(context, document, settings, watch=watch, output=output, as_json=as_json)


def report(context: typer.Context, job_id: JobId, output: Output = None, as_json: AsJson = False) -> None:
    """Show what an evaluation or a reading has found, and fetch its pictures."""
    with client(context) as connected:
        _show(connected, job_id, output=output, as_json=as_json)


def reference(text: str) -> dict[str, Any]:
    """JOB, JOB:best, JOB:latest or JOB:STEP as a checkpoint's reference; what is wrong with it `check` tells."""
    job, colon, which = text.partition(":")
    if not colon:
        return {"job": job}
    return {"job": job, "which": int(which) if which.isdecimal() else which}


def _must_evaluate(recipe: str | None) -> None:
    """Refuse a training's recipe by its kind, rather than by each field that an evaluation lacks."""
    from resforge.recipes import UnknownRecipe, all_recipes, get

    try:
        if recipe is None or get(recipe).needs:
            return
    except UnknownRecipe as error:
        raise Failure(str(error), Exit.USAGE) from error
    known = ", ".join(item.name for item in all_recipes().values() if item.needs and item.name.startswith(recipe))
    hint = f"; its evaluations are {known}" if known else ""
    raise Failure(f"--recipe {recipe}: this is a training, for `resforge submit`{hint}", Exit.USAGE)


def _data(dataset: str | None, split: str, limit: int | None) -> dict[str, Any]:
    return {"dataset": dataset, "split": split, "limit": limit}


def _run(
    context: typer.Context,
    document: dict[str, Any],
    settings: list[str] | None,
    *,
    watch: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Submit the job, and unless told otherwise wait for its report and show it."""
    if output is not None and not watch:
        raise Failure("--output waits for the report, and --no-watch does not", Exit.USAGE)
    for option in settings or []:
        lay_over(document, option)
    check(document)
    with client(context) as connected:
        job = connected.submit(document)
        if not watch:
            print_json(job) if as_json else typer.echo(f"job {job.id} is {job.state}; `resforge report {job.id}`")
            return
        succeeded(connected, job, as_json=as_json)
        _show(connected, job.id, output=output, as_json=as_json)


def succeeded(connected: "Client", job: "Job", *, as_json: bool) -> None:
    """Follow a job to its end, for people by what it says; a job that ends otherwise ends the command."""
    if as_json:
        job = connected.wait(job.id)
    else:
        from resforge.cli.watch import ending, follow

        note(f"job {job.id}")
        job = follow(connected, job.id)
        note(ending(job))
    if job.state != "SUCCEEDED":
        if as_json:
            print_json(job)
        raise typer.Exit(Exit.FAILED)


def _show(connected: "Client", job_id: str, *, output: Path | None, as_json: bool) -> None:
    found = connected.report(job_id) if output is None else connected.download_report(job_id, output)
    if as_json:
        print_json(found)
        return
    what = found.report
    typer.echo(f"{what.title}: {what.images:,} images of {what.dataset} ({what.split}), {what.seconds:.1f} s")
    typer.echo(f"source: {what.source}")
    print_table(("figure", ">value", "what it is"), _rows(found))
    if output is not None:
        for name in ("report.json", *(part.name for part in what.pictures)):
            typer.echo(f"{output / name}")
    elif what.pictures:
        names = ", ".join(part.name for part in what.pictures)
        typer.echo(f"pictures: {names}; `resforge report {job_id} -o FOLDER` fetches them")


def _rows(found: "JobReport") -> "Iterator[tuple[str, str, str]]":
    """Single numbers as they are; lists and mappings by their size, since report.json holds them."""
    for name, value in found.report.values.items():
        unit = found.report.units.get(name, "")
        if isinstance(value, float):
            yield name, f"{value:.4g}", unit
        elif isinstance(value, dict | list):
            yield name, f"({len(value)} entries)", unit
        else:
            yield name, "-" if value is None else str(value), unit
