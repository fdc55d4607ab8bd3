"""From POST to the first optimiser step, against `torchrun` with the same worker loop on the same machine, in one run.

    python benchmarks/start.py [--repeats 5] [--workers 2 1] [--cold] [--json]

Both sides train the same small job (8 layers on digits) on the same S3 server, taking turns. The service's Ray cluster
is up already, as in production, so its start is not counted. Workers are forked from a warm process, which the first of
all jobs has to start; that one is told apart. The first step's time is the one that rank 0 wrote into the
metrics stream; what lies between is in the job's events (trainer/start.py). Writes docs/results/start.md.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from resforge.client import Client
from resforge.jobs import DatasetInfo
from resforge.metrics import POINT
from resforge.s3 import ObjectStore
from resforge.spec import TrainSpec
from resforge.storage import AttemptDocument, JobDocument, JobPrefix, Stream, read_stream

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "docs" / "results" / "start.md"
sys.path.insert(0, str(ROOT))

from benchmarks import table  # noqa: E402

DIGITS = DatasetInfo(name="digits", format="digits", channels=1, classes=10, image_size=8)
BIN = Path(sys.executable).parent


def spec(workers: int) -> TrainSpec:
    """A job whose steps take no time beside its start."""
    return TrainSpec.model_validate(
        {
            "model": {"family": "cifar", "depth": 8, "width": 8},
            "data": {"dataset": "digits"},
            "training": {"global_batch": 32, "steps": 5, "log_every_steps": 1},
            "scaling": {"workers": workers},
        }
    )


# What a start's seconds are spent on, by the mark at which each part ends.
PARTS = {
    "submitted": "the service: the job is taken, and handed to Ray",
    "driver": "Ray's job: its supervisor's process, up to the driver's",
    "driver imported": "the driver's imports",
    "worker": "Ray Train, up to rank 0's process",
    "worker called": "rank 0's process: Ray's imports, up to our first call",
    "worker imported": "torch, Lightning and the loop",
    "group joined": "the process group",
    "ready": "spec, data, network, checkpoints",
    "step": "Lightning, up to the first step",
}
ALONE_PARTS = {
    **PARTS,
    "worker": "up to rank 0's process, forked from the warm one",
    "worker called": "rank 0's process, up to our first call",
}
TORCHRUN_PARTS = {**PARTS, "worker": "torchrun: its own imports, up to rank 0's process"}
Start = dict[str, float]  # seconds since the beginning by mark


def reached(store: ObjectStore, prefix: JobPrefix, began: float) -> Start:
    """How far the start had come when: what rank 0 has told, and its first optimiser step."""
    told = (json.loads(line) for _, line in read_stream(store, prefix, Stream.EVENTS, [1]))
    marks: Start = next(event["data"]["start"] for event in told if event["type"] == "WorkersStarted")
    points = (POINT.validate_json(line) for _, line in read_stream(store, prefix, Stream.METRICS, [1]))
    marks["step"] = next(point.at.timestamp() for point in points if point.kind == "train")
    return {name: at - began for name, at in marks.items()}


def by_service(client: Client, store: ObjectStore, workers: int) -> Start:
    """From POST."""
    began = time.time()
    job = client.wait(client.submit(spec(workers)).id, 300)
    assert job.state == "SUCCEEDED", job.message
    submitted = client.attempts(job.id)[0].submitted_at
    assert submitted is not None
    return reached(store, JobPrefix.of(job.project, job.id), began) | {"submitted": submitted.timestamp() - began}


def by_torchrun(store: ObjectStore, workers: int) -> Start:
    """From the start of `torchrun`."""
    job = f"torchrun-{uuid.uuid4().hex[:8]}"
    prefix = JobPrefix.of("benchmark", job)
    store.put(prefix.spec, JobDocument(job=job, project="benchmark", spec=spec(workers), dataset=DIGITS).to_bytes())
    store.put(prefix.attempt(1).attempt, AttemptDocument(number=1).to_bytes())
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [
        str(BIN / "torchrun"), "--nproc-per-node", str(workers),
        "--master-addr", "127.0.0.1", "--master-port", str(port),
        "-m", "trainer.torchrun", store.uri(prefix.key.rstrip("/")), "1",
    ]  # fmt: skip
    began = time.time()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, timeout=300)
    return reached(store, prefix, began)


def parts(starts: Sequence[Start]) -> dict[str, float]:
    """The median seconds of each part, by the mark at its end; a mark that a side does not have adds to the next."""
    names = [name for name in PARTS if name in starts[0]]
    ends = [[0.0, *(start[name] for name in names)] for start in starts]
    spent = [[after - before for before, after in pairwise(line)] for line in ends]
    return {name: statistics.median(column) for name, column in zip(names, zip(*spent, strict=True), strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side (default 5)")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 1], help="workers of the jobs (default 2 and 1)")
    parser.add_argument("--cold", action="store_true", help="fork nothing, as on GPUs; prints, and writes no page")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and write no page")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["RESFORGE_WARM_S"] = "0" if arguments.cold else "120"
    with tempfile.TemporaryDirectory(prefix="resforge-bench-") as folder:
        home = Path(folder) / "home"
        resforge = [str(BIN / "resforge"), "--home", str(home)]
        subprocess.run([*resforge, "up", "--detach"], check=True, stdout=sys.stderr)
        try:
            measured = _measure(home, arguments.repeats, arguments.workers)
            measured["forked"] = COLD if arguments.cold else FORKED
        finally:
            subprocess.run([*resforge, "down"], check=True, stdout=sys.stderr)
    if arguments.json:
        print(json.dumps(measured))
    else:
        text = page(measured)
        print(text)
        if not arguments.cold:
            RESULT.write_text(text)


def _measure(home: Path, repeats: int, gangs: list[int]) -> dict[str, Any]:
    connection = json.loads((home / "connection.json").read_text())
    os.environ.update(
        AWS_ACCESS_KEY_ID=connection["s3_access_key"], AWS_SECRET_ACCESS_KEY=connection["s3_secret_key"],
        AWS_DEFAULT_REGION="us-east-1", RESFORGE_S3_ENDPOINT=connection["s3_endpoint"],
    )  # fmt: skip
    store = ObjectStore(connection["s3_bucket"], endpoint=connection["s3_endpoint"])
    rows = []
    with Client(connection["url"], connection["api_key"]) as client:
        for workers in gangs:
            first = by_service(client, store, workers)["step"]
            print(f"{workers} workers, first: {first:.1f} s", file=sys.stderr, flush=True)
            starts: dict[str, list[Start]] = {"service": [], "torchrun": []}
            sides: dict[str, Callable[[], Start]] = {
                "service": partial(by_service, client, store, workers),
                "torchrun": partial(by_torchrun, store, workers),
            }
            for repeat in range(repeats):
                for side, measure in sides.items():
                    starts[side].append(measure())
                    seconds = starts[side][-1]["step"]
                    print(f"{repeat + 1}/{repeats} {side}: {seconds:.1f} s", file=sys.stderr, flush=True)
            times = {side: [start["step"] for start in found] for side, found in starts.items()}
            ratio = statistics.median(times["service"]) / statistics.median(times["torchrun"])
            spent = {side: parts(found) for side, found in starts.items()}
            rows.append({"workers": workers, "first": first, "times": times, "ratio": ratio, "parts": spent})
    both = [
        (row["workers"], *(statistics.median(row["times"][side]) for side in ("service", "torchrun"))) for row in rows
    ]
    return {
        "what": "seconds to the first optimiser step",
        "rows": rows,
        "table": [
            table.row(f"POST to the first step, {workers} workers, against torchrun", ours, theirs, "s", most=2.5)
            for workers, ours, theirs in both
        ],
        "hardware": f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU used",
        "versions": {name: version(name) for name in ("ray", "torch", "lightning")}
        | {"python": platform.python_version()},
        "date": datetime.now(UTC).date().isoformat(),
    }


def page(measured: dict[str, Any]) -> str:
    def spread(seconds: list[float]) -> str:
        return f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"

    lines = [
        f"| {row['workers']} | {row['first']:.1f} | {spread(row['times']['service'])} | "
        f"{spread(row['times']['torchrun'])} | **{row['ratio']:.2f}** |"
        for row in measured["rows"]
    ]
    repeats = len(measured["rows"][0]["times"]["service"])
    versions = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
    return "\n".join(
        [
            "# The start of a job",
            "",
            "Seconds to the first optimiser step: from POST on a stack that is up, and from the start of `torchrun`",
            "with the same worker loop. Made by `benchmarks/start.py`, both sides taking turns in one run; medians",
            f"(least to most) of {repeats} runs, after the first. {measured['forked']}",
            "",
            "| workers | Resforge, the first | Resforge, POST to first step | torchrun, start to first step | ratio |",
            "|---:|---:|---:|---:|---:|",
            *lines,
            "",
            *(line for row in measured["rows"] for line in _spent(row)),
            *_NOTES,
            "",
            f"{measured['date']}; {measured['hardware']}; {versions}.",
            "",
        ]
    )


FORKED = """Workers on CPUs are forked from a process that has
imported all but Ray, which the first of all jobs, that in the first line, starts."""
COLD = "All workers import for themselves, as on GPUs."
_NOTES = """
Most of it is imports. On two cores the gang's five processes of Python that import Ray (its supervisor of the job, the
driver, what keeps Ray Train's workers in step, and two workers) share what `torchrun` has three processes for.

What was cut, in this order: torch and Lightning in the driver; matplotlib and scipy, which Lightning's dependencies
import only because they are there; Ray Train's look at its workers every 0.2 s instead of 2; torch in the controller;
two processes beside the workers, for Ray's data sets and for placement groups, which import Ray for two seconds of a
core each; the controller's own process, after which it was 1.98 and 2.22 (`--cold`), as on GPUs, where nothing is
forked; the imports of a gang's workers, which are forked from the warm process as jobs of one worker were before; and
half a second between an attempt's being written down and its being handed to Ray. Before the helpers' two processes
went it was 2.84 and 2.91 on 2026-11-27 and -28, and before the controller's went 2.12, 2.35 and 2.53 on 2026-11-28.

What was not done: Ray is not imported before a fork, though its imports take two seconds of a core in the driver and
in each worker, since it makes its workers' names of random numbers that would be the same in all. Ray can load modules
in every process that it starts (`preload_python_modules`); the supervisor of a job would then load torch too, on the
way of every job.
""".strip().splitlines()


def _spent(row: dict[str, Any]) -> list[str]:
    """Where the seconds of one kind of job go, on both sides."""
    ours, theirs = row["parts"]["service"], row["parts"]["torchrun"]
    workers = f"{row['workers']} worker{'s' if row['workers'] > 1 else ''}"
    lines = [
        f"Where the seconds go, {workers}, medians:",
        "",
        "| up to | Resforge | torchrun |",
        "|---|---:|---:|",
    ]
    for name, what in (PARTS if row["workers"] > 1 else ALONE_PARTS).items():
        if name in ours or name in theirs:
            other = TORCHRUN_PARTS[name]
            told = what if what == other or name not in theirs else f"{what}; {other}" if name in ours else other
            cells = (f"{side[name]:.2f}" if name in side else "" for side in (ours, theirs))
            lines.append(f"| {told} | {' | '.join(cells)} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
