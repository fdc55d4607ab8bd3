"""Commands on what a job leaves: its checkpoints and its training curves."""

from pathlib import Path
from typing import Annotated

import typer

from resforge.cli.connect import client
from resforge.cli.exits import Exit, Failure
from resforge.cli.output import AsJson, JobId, clock, number, percent, print_json, print_table, size


def checkpoints(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """List a job's checkpoints."""
    with client(context) as connected:
        found = connected.checkpoints(job_id)
    if as_json:
        print_json(found)
        return
    print_table(
        (">step", ">epoch", ">attempt", "test accuracy", "test loss", "size", "written", ""),
        (
            (
                str(item.step),
                str(item.epoch),
                str(item.attempt),
                percent(item.evaluation.top1 if item.evaluation else None),
                number(item.evaluation.loss if item.evaluation else None),
                size(item.size),
                clock(item.created_at),
                ", ".join(
                    word
                    for word, holds in (("best", item.best), ("latest", item.latest), ("final", item.final))
                    if holds
                ),
            )
            for item in found
        ),
        empty="no checkpoints yet",
    )


def pull(
    context: typer.Context,
    job_id: JobId,
    which: Annotated[str, typer.Argument(help="best, latest, or a step.")] = "best",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The folder to write to; left out: JOB-WHICH.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download a checkpoint and verify the SHA-256 of each of its files."""
    if which not in ("best", "latest") and not which.isdecimal():
        raise Failure(f"{which}: expected best, latest, or the number of a step", Exit.USAGE)
    folder = output or Path(f"{job_id}-{which}")
    with client(context) as connected:
        download = connected.download(job_id, which, folder)
    if as_json:
        print_json(download.checkpoint)
        return
    checkpoint = download.checkpoint
    typer.echo(f"step {checkpoint.step} of job {job_id}, {size(checkpoint.size)}, verified, in {folder}")
    for part in checkpoint.parts:
        typer.echo(f"  {part.sha256}  {part.name}")


def plot(
    context: typer.Context,
    job_id: JobId,
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture to write: .png, .svg or .pdf.")] = Path(
        "curves.png"
    ),
) -> None:
    """Draw a job's training curves as a picture."""
    from resforge.cli.plot import draw

    with client(context) as connected:
        job = connected.job(job_id)
        points = connected.metrics(job_id)
    draw(points, output, title=f"{job.spec.subject} on {job.dataset}")
    typer.echo(f"drawn to {output}")
