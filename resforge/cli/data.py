"""`resforge data`: data sets of one's own."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resforge.cli.connect import client
from resforge.cli.output import AsJson, print_json
from resforge.cli.reports import succeeded
from resforge.cli.submit import check

if TYPE_CHECKING:
    from resforge.resources import JobReport, RemovedDataset

app = typer.Typer(no_args_is_help=True, help="Data sets of one's own.")

_NAMED = 20  # broken images that are named on the terminal


@app.callback()
def data() -> None:
    """Data sets of one's own."""


@app.command()
def ingest(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="s3://bucket/prefix or a folder on the workers, with train/CLASS/IMAGE or train/CLASS.tar, and val or "
            "test likewise.",
        ),
    ],
    name: Annotated[str, typer.Option(help="The name that jobs will give as data.dataset.")],
    target: Annotated[
        str | None,
        typer.Argument(metavar="[TARGET]", help="s3://bucket/prefix. Left out: a place in the service's own bucket."),
    ] = None,
    shorter_side: Annotated[
        int | None,
        typer.Option(min=8, help="Make larger images so large, in pixels. Left out: every image keeps its bytes."),
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of the JPEGs that are made.")] = 90,
    image_size: Annotated[int, typer.Option(min=8, help="Side of a network's square input, in pixels.")] = 224,
    shard_mb: Annotated[float, typer.Option(help="Megabytes of the source in one shard, about.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Shards that are made at a time.")] = 1,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a data set of WebDataset's tar shards out of class folders or class tars, as a job that can be resumed."""
    document: dict[str, Any] = {
        "kind": "ingest",
        "dataset": name,
        "source": source if source.startswith("s3://") else os.path.abspath(Path(source).expanduser()),
        "target": target,
        "image_size": image_size,
        "shorter_side": shorter_side,
        "quality": quality,
        "shard_bytes": round(shard_mb * 1e6),
        "scaling": {"workers": workers},
    }
    check(document)
    with client(context) as connected:
        job = connected.submit(document)
        if detach:
            print_json(job) if as_json else typer.echo(f"job {job.id} is {job.state}; `resforge watch {job.id}`")
            return
        succeeded(connected, job, as_json=as_json)
        found = connected.report(job.id)
    if as_json:
        print_json(found)
    else:
        _show(found)


@app.command()
def remove(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The name that jobs give as data.dataset.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a data set that this project has ingested, for good; its objects too, where they are the service's."""
    with client(context) as connected:
        if not yes:
            typer.confirm(f"Remove the data set {name}, for good?", abort=True, err=True)
        removed = connected.remove_dataset(name)
    print_json(removed) if as_json else typer.echo(_told(removed))


def _told(removed: "RemovedDataset") -> str:
    if removed.objects_left:
        return f"data set {removed.deleted} is removed; its objects were left where they lie, at {removed.location}"
    return f"data set {removed.deleted} is removed, with {removed.objects_removed} objects"


def _show(found: "JobReport") -> None:
    report = found.report
    values = report.values
    typer.echo(f"{report.title}, in {report.seconds:.1f} s")
    typer.echo(f"they lie at {values['location']}; jobs name them by data.dataset: {report.dataset}")
    count, broken = values["broken_count"], values["broken"]
    if count:
        typer.echo(f"{count} broken and left out:")
    for item in broken[:_NAMED]:
        typer.echo(f"  {item['name']}: {item['reason']}")
    if count > _NAMED:
        typer.echo(f"  and {count - _NAMED} more; `resforge report {report.job} --json` names {len(broken)}")
