"""Commands on jobs: what there is, what happened to it, and ending it."""

from typing import TYPE_CHECKING, Annotated

import typer

from resforge.cli.connect import client
from resforge.cli.exits import Exit, Failure
from resforge.cli.output import (
    AsJson,
    JobId,
    ago,
    clock,
    duration,
    note,
    number,
    percent,
    print_json,
    print_line,
    print_table,
)
from resforge.cli.watch import accuracy, figures, where

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resforge.jobs import Event, Job
    from resforge.resources import EvalEntry, LogEntry, TrainEntry

Follow = Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job has ended.")]


def jobs(
    context: typer.Context,
    state: Annotated[list[str] | None, typer.Option(help="Only jobs in this state; may be given again.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only jobs with this label.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
    all_jobs: Annotated[bool, typer.Option("--all", help="Every one, however many.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the project's jobs, newest first."""
    from itertools import islice

    labels = {}
    for option in label or []:
        key, separator, value = option.partition("=")
        if not separator:
            raise Failure(f"--label {option}: expected KEY=VALUE", Exit.USAGE)
        labels[key] = value
    states = [item.upper() for item in state or []]
    with client(context) as connected:
        page = 50 if all_jobs else min(limit, 50)
        found = list(islice(connected.jobs(states=states, labels=labels, page_size=page), None if all_jobs else limit))
    if as_json:
        print_json(found)
        return
    print_table(
        ("job", "name", "state", "kind", "subject", "data", "step", "top-1", "created"),
        (
            (
                job.id,
                job.name or "",
                where(job),
                job.spec.kind,
                job.spec.subject,
                job.dataset,
                f"{job.progress.step}/{job.progress.total_steps}" if job.progress else "-",
                percent(job.result.top1 if job.result else job.progress.test_top1 if job.progress else None),
                ago(job.created_at),
            )
            for job in found
        ),
        empty="no jobs",
        spare=("data", "kind", "created", "subject", "step"),
    )


def job(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Show one job."""
    with client(context) as connected:
        found = connected.job(job_id)
    if as_json:
        print_json(found)
    else:
        print_table(("", ""), _facts(found))


def _facts(job: "Job") -> "Iterable[tuple[str, str]]":
    spec = job.spec
    yield "job", job.id
    yield "name", job.name or "-"
    yield "state", where(job)
    if job.message:
        yield "message", job.message
    yield "kind", spec.kind
    yield {"train": "model"}.get(spec.kind, "subject"), spec.subject
    yield "data", job.dataset
    yield "recipe", spec.recipe or "-"
    yield "workers", str(spec.scaling.workers)
    yield "labels", ", ".join(f"{key}={value}" for key, value in job.labels.items()) or "-"
    yield "attempts", str(job.attempts)
    yield "progress", figures(job) if job.progress else "-"
    if job.result is not None:
        yield "best" if spec.kind == "train" else "result", accuracy(job.result)
    yield "created", clock(job.created_at)
    yield "started", clock(job.started_at)
    yield "finished", clock(job.finished_at)


def attempts(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """List a job's attempts."""
    with client(context) as connected:
        found = connected.attempts(job_id)
    if as_json:
        print_json(found)
        return
    print_table(
        (">attempt", "state", ">restarts", "resumed from", "created", "ran for", "message"),
        (
            (
                str(item.number),
                f"{item.state} ({item.reason})" if item.reason else item.state,
                str(item.restarts),
                ", ".join(map(str, item.resume_from)) or "-",
                clock(item.created_at),
                duration((item.finished_at - item.running_at).total_seconds())
                if item.finished_at and item.running_at
                else "-",
                item.message,
            )
            for item in found
        ),
        empty="no attempts yet",
    )


def logs(context: typer.Context, job_id: JobId, follow: Follow = False, as_json: AsJson = False) -> None:
    """Print what the job's driver and workers wrote."""
    with client(context) as connected:
        for entry in connected.follow_logs(job_id) if follow else connected.logs(job_id):
            print_line(entry) if as_json else typer.echo(_log_line(entry))


def _log_line(entry: "LogEntry") -> str:
    return f"{clock(entry.at)} {entry.attempt} {entry.source}: {entry.line}"


def events(context: typer.Context, job_id: JobId, follow: Follow = False, as_json: AsJson = False) -> None:
    """Print what happened to the job."""
    with client(context) as connected:
        for event in connected.follow_events(job_id) if follow else connected.events(job_id):
            print_line(event) if as_json else typer.echo(_event_line(event))


def _event_line(event: "Event") -> str:
    parts = [clock(event.at), event.type]
    if event.attempt is not None:
        parts.append(f"attempt {event.attempt}")
    if event.after is not None:
        parts.append(f"{event.before or '(new)'} -> {event.after}")
    if event.reason is not None:
        parts.append(str(event.reason))
    if event.message:
        parts.append(event.message)
    return "  ".join(parts)


def metrics(context: typer.Context, job_id: JobId, follow: Follow = False, as_json: AsJson = False) -> None:
    """Print training points and evaluations."""
    with client(context) as connected:
        for point in connected.follow_metrics(job_id) if follow else connected.metrics(job_id):
            print_line(point) if as_json else typer.echo(_metric_line(point))


def _metric_line(point: "TrainEntry | EvalEntry") -> str:
    start = f"{clock(point.at)}  attempt {point.attempt}  epoch {point.epoch:>3}  step {point.step:>6}"
    accuracy = f"loss {number(point.loss)}  top-1 {percent(point.top1)}"
    if point.kind == "eval":
        return f"{start}  {point.split:<5}  {accuracy}  ({point.images} images)"
    return f"{start}  steps  {accuracy}  lr {point.lr:g}  {point.images_per_second:,.0f} img/s"


def cancel(
    context: typer.Context,
    job_id: JobId,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the job has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask for a job's end. Its checkpoints stay."""
    with client(context) as connected:
        found = connected.cancel(job_id)
        if wait:
            try:
                found = connected.wait(job_id)
            except KeyboardInterrupt:
                note(f"no longer waiting; job {job_id} is being ended all the same")
                raise typer.Exit(Exit.INTERRUPTED) from None
    if as_json:
        print_json(found)
    else:
        from resforge.jobs import TERMINAL

        asked = "" if found.state in TERMINAL else "; its end is asked for"
        typer.echo(f"job {found.id} is {where(found)}{asked}")


def delete(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Remove an ended job with its checkpoints, logs and metrics, for good."""
    with client(context) as connected:
        deleted = connected.delete(job_id)
    if as_json:
        print_json(deleted)
    else:
        typer.echo(f"job {deleted.deleted} is removed, with {deleted.objects_removed} objects")
