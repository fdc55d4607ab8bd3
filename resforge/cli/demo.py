"""`resforge demo`: the main job from end to end, in a stack of its own that is gone afterwards."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from resforge.cli.connect import named_home
from resforge.cli.exits import Exit, Failure
from resforge.cli.output import duration, note, percent, size
from resforge.cli.stack import command

if TYPE_CHECKING:
    from resforge.client import Client
    from resforge.jobs import Job
    from resforge.resources import CheckpointDownload

RECIPE = "digits/resnet-20"
WORKERS = 2
LABEL = ("made-by", "resforge-demo")
_ENDS_WITHIN_S = 60.0


@dataclass(frozen=True)
class Addresses:
    """Where a running stack answers, from its connection.json."""

    url: str
    api_key: str
    s3_endpoint: str
    ray_dashboard: str


def demo(
    context: typer.Context,
    home: Annotated[Path | None, typer.Option(help="The demo's own folder; left out: .demo.")] = None,
) -> None:
    """Train ResNet-20 on handwritten digits through the whole service, and check what comes out.

    Starts a stack, posts a job through REST, shows its progress, pulls the best checkpoint, evaluates it in a fresh
    process, draws the training curves, and ends everything that it started.
    """
    began = time.monotonic()
    home = (home or named_home(context) or Path(".demo")).expanduser().resolve()
    with ended_by_signals(), running_stack(home) as addresses:
        from resforge.client import Client

        # The address is given, so that RESFORGE_URL of the environment does not lead elsewhere.
        with Client(addresses.url, addresses.api_key) as client:
            job = _train(client)
            results = home / "results" / job.id
            download = client.download(job.id, "best", results / "checkpoint")
            _say("checkpoint pulled and verified; evaluating it in a fresh process")
            correct, images = _evaluate(download, results / "checkpoint")
            speed = _draw(client, job, results / "curves.png")
    _summary(
        addresses, home, job, download, correct=correct, images=images, speed=speed, seconds=time.monotonic() - began
    )


# The stack


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the program as Ctrl-C does, so that what was started is ended too."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def running_stack(home: Path) -> Iterator[Addresses]:
    """A stack for as long as the block runs. It ends when its standard input does, so also if this process is killed.

    Raises:
        Failure: it does not come up. Its own words were printed by then.
    """
    words = command("up", home, ["--follow-stdin", "--quiet-once-up"])
    child = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C comes to us alone, and we end it
    )
    try:
        assert child.stdout is not None
        for line in child.stdout:  # until it is up, or has ended
            _say(line.decode("utf-8", "replace").rstrip())
        yield _addresses(home, child)
    finally:
        _end(child)


def _addresses(home: Path, child: "subprocess.Popen[bytes]") -> Addresses:
    try:
        document: dict[str, Any] = json.loads((home / "connection.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        document = {}
    if document.get("pid") != child.pid:
        code = child.wait()
        raise Failure("the stack did not come up", Exit.CONFLICT if code == Exit.CONFLICT else Exit.FAILED)
    return Addresses(**{name: document[name] for name in ("url", "api_key", "s3_endpoint", "ray_dashboard")})


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Let the stack end, whatever signals come meanwhile."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if child.poll() is None:
            _say("ending the stack")
        assert child.stdin is not None
        child.stdin.close()
        try:
            child.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            child.kill()  # its children get a signal by that, too
            child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# The job


def _train(client: "Client") -> "Job":
    """Post the job and show its progress to the end.

    Raises:
        Failure: it did not succeed.
    """
    from resforge.cli.watch import follow, where

    _end_earlier(client)
    job = client.submit(
        {
            "recipe": RECIPE,
            "name": "demo",
            "labels": dict([LABEL]),
            "scaling": {"workers": WORKERS},
        }
    )
    _say(f"POST {client.url}/v1/jobs gave job {job.id}: {RECIPE} with {WORKERS} workers")
    try:
        job = follow(client, job.id)
    except BaseException:
        # Else the next start of this stack would take the job up again.
        with contextlib.suppress(Exception):
            client.cancel(job.id)
        raise
    if job.state != "SUCCEEDED":
        for entry in client.logs(job.id)[-20:]:
            note(f"  {entry.source}: {entry.line}")
        raise Failure(f"job {job.id} {where(job)}: {job.message or 'no message'}")
    return job


def _end_earlier(client: "Client") -> None:
    """Cancel what a demo that was killed has left in this stack; it would take the processors."""
    from resforge.jobs import TERMINAL

    for job in client.jobs(labels=dict([LABEL])):
        if job.state not in TERMINAL:
            _say(f"ending job {job.id}, which an earlier demo has left")
            client.cancel(job.id)
            client.wait(job.id, 120)


def _evaluate(download: "CheckpointDownload", folder: Path) -> tuple[int, int]:
    """Evaluate the pulled checkpoint in a fresh process: how many images it classed correctly, of how many.

    Raises:
        Failure: the accuracy is another than the one that the job reported, or the process failed.
    """
    reported = download.manifest.evaluation
    if reported is None:
        raise Failure("the best checkpoint carries no evaluation to compare with")
    answer = subprocess.run(
        [sys.executable, "-m", "trainer", "evaluate", str(folder), "--json"],
        check=False,
        capture_output=True,
        text=True,
    )
    if answer.returncode != 0:
        raise Failure(f"the checkpoint can't be evaluated: {answer.stderr.strip()[-2000:]}")
    found = json.loads(answer.stdout)
    images = int(found["images"])
    # As counts, since the same accuracy may be a last bit off after two ways of dividing.
    correct, expected = round(found["top1"] * images), round(reported.top1 * reported.images)
    if (correct, images) != (expected, reported.images):
        raise Failure(
            f"evaluated anew, the checkpoint gets {correct} of {images} images right; the job reported {expected} "
            f"of {reported.images}"
        )
    return correct, images


def _draw(client: "Client", job: "Job", path: Path) -> float:
    """Draw the training curves, and give the median throughput in images/s."""
    import statistics

    from resforge.cli.plot import draw

    points = client.metrics(job.id)
    draw(points, path, title=f"{job.spec.subject} on {job.dataset}")
    return statistics.median(point.images_per_second for point in points if point.kind == "train")


def _summary(
    addresses: Addresses,
    home: Path,
    job: "Job",
    download: "CheckpointDownload",
    *,
    correct: int,
    images: int,
    speed: float,
    seconds: float,
) -> None:
    results = home / "results" / job.id
    checkpoint = download.checkpoint
    trained = (job.finished_at - job.started_at).total_seconds() if job.finished_at and job.started_at else None
    # By hand it is called as it can be: `make demo` puts nothing on the PATH.
    own = os.path.relpath(Path(sys.executable).with_name("resforge"))
    program = f"{'resforge' if shutil.which('resforge') else own} --home {os.path.relpath(home)}"
    lines = [
        "",
        f"Test accuracy  {percent(correct / images)}: {correct} of {images} held-out digits, as the job reported",
        f"Training       {job.spec.subject}, {WORKERS} workers, {speed:,.0f} images/s, {duration(trained)}",
        f"Checkpoint     step {checkpoint.step}, {size(checkpoint.size)}, SHA-256 verified, in "
        f"{os.path.relpath(results / 'checkpoint')}",
        *(f"               {part.name}" for part in checkpoint.parts),
        f"Curves         {os.path.relpath(results / 'curves.png')}",
        f"Time           {duration(seconds)} in all",
        f"While it ran   {addresses.url}/docs (API), {addresses.ray_dashboard} (Ray), {addresses.s3_endpoint} (S3)",
        "",
        "Everything that was started has ended. To go on by hand:",
        f"  {program} up --detach",
        f"  {program} submit --recipe {RECIPE} --workers {WORKERS} --set optim.lr=0.05 --watch",
        f"  {program} jobs",
        f"  {program} down",
    ]
    typer.echo("\n".join(lines))


def _say(text: str) -> None:
    typer.echo(text)
