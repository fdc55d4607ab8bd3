"""Live progress of a job: a bar on a terminal, plain lines elsewhere."""

import time
from typing import TYPE_CHECKING

import typer

from resforge.cli.connect import client
from resforge.cli.exits import Exit
from resforge.cli.output import AsJson, JobId, duration, note, number, percent, print_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.progress import Progress, TaskID

    from resforge.client import Client
    from resforge.jobs import Job
    from resforge.metrics import EvalPoint
    from resforge.metrics import Progress as JobProgress

# A log file should not get a line for every step.
_LINE_EVERY_S = 5.0


def watch(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Show a job's progress until it ends. Leaving with Ctrl-C does not stop the job."""
    with client(context) as connected:
        raise typer.Exit(show(connected, job_id, as_json=as_json))


def show(client: "Client", job_id: str, *, as_json: bool = False) -> Exit:
    """Follow a job to its end, and give the exit code: whether it succeeded.

    With `as_json`, each change of the job is a line of JSON.
    """
    try:
        job = _follow_json(client, job_id) if as_json else follow(client, job_id)
    except KeyboardInterrupt:
        note(
            f"\nno longer watching; job {job_id} goes on. `resforge watch {job_id}` looks again, "
            f"`resforge cancel {job_id}` ends it"
        )
        return Exit.INTERRUPTED
    if not as_json:
        typer.echo(ending(job))
    return Exit.OK if job.state == "SUCCEEDED" else Exit.FAILED


def _follow_json(client: "Client", job_id: str) -> "Job":
    job = None
    for job in client.watch(job_id):
        print_line(job)
    assert job is not None  # `watch` gives the job at least once
    return job


def follow(client: "Client", job_id: str) -> "Job":
    """Show progress on the terminal, or as lines, and return the job once it has ended."""
    from resforge.cli.output import console

    out = console(stderr=True)
    if not out.is_terminal:
        return _follow_lines(client, job_id)
    job = None
    with _bar(out) as bar:
        task: TaskID = bar.add_task("", total=None, state="", figures="")
        for job in client.watch(job_id, every_s=0.3):
            _update(bar, task, job)
    assert job is not None
    return job


def _follow_lines(client: "Client", job_id: str) -> "Job":
    job, said_at, said, said_state = None, 0.0, "", ""
    for job in client.watch(job_id):
        state = where(job)
        line = f"{state:<24} {figures(job)}".rstrip()
        if state != said_state or (line != said and time.monotonic() - said_at >= _LINE_EVERY_S):
            note(line)
            said_at, said, said_state = time.monotonic(), line, state
    assert job is not None
    return job


def _bar(out: "Console") -> "Progress":
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.fields[state]}", style="bold"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[figures]}"),
        console=out,
        refresh_per_second=4,
    )


def _update(bar: "Progress", task: "TaskID", job: "Job") -> None:
    progress = job.progress
    bar.update(
        task,
        state=where(job),
        figures=figures(job),
        total=progress.total_steps if progress else None,
        completed=progress.step if progress else 0,
    )


def where(job: "Job") -> str:
    """The job's state, with its reason."""
    return f"{job.state} ({job.reason})" if job.reason else str(job.state)


def figures(job: "Job") -> str:
    """Epoch, step, loss, accuracies, throughput and the time that is left; before training, what it waits for."""
    progress = job.progress
    if progress is None:
        return job.message
    if job.spec.kind == "ingest":
        return "  ".join([f"shard {progress.step}/{progress.total_steps}", *_pace(job, progress)])
    if job.spec.kind != "train":
        return f"{progress.step}/{progress.total_steps}"
    parts = [
        f"epoch {min(progress.epoch + 1, progress.total_epochs):g}/{progress.total_epochs:g}",
        f"step {progress.step}/{progress.total_steps}",
        f"loss {number(progress.loss, 3)}",
        f"train {percent(progress.top1)}",
        f"test {percent(progress.test_top1)}",
    ]
    return "  ".join([*parts, *_pace(job, progress)])


def _pace(job: "Job", progress: "JobProgress") -> "Iterator[str]":
    """Throughput and the time that is left, where they are known."""
    if progress.images_per_second is not None:
        yield f"{progress.images_per_second:,.0f} img/s"
    if progress.eta_s is not None and job.state == "RUNNING":
        yield f"ETA {duration(progress.eta_s)}"


def accuracy(point: "EvalPoint") -> str:
    """Such as `test accuracy 98.06 % at step 352`."""
    return f"{point.split} accuracy {percent(point.top1)} at step {point.step}"


def ending(job: "Job") -> str:
    """How a job ended, in a line or two."""
    text = f"job {job.id} {where(job)}"
    if job.started_at and job.finished_at:
        text += f" after {duration((job.finished_at - job.started_at).total_seconds())}"
    if job.result is not None:
        text += f"; {'best ' if job.spec.kind == 'train' else ''}{accuracy(job.result)}"
    if job.message:
        text += f"\n{job.message}"
    return text
