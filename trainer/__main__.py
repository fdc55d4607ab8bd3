"""Drive one attempt of a job on a Ray cluster, or evaluate a checkpoint that was pulled."""

import argparse
import json
import logging
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from resforge.s3 import ObjectStore, StorageError
from resforge.storage import CorruptCheckpoint, Heartbeat, JobDocument, JobPrefix
from trainer.errors import TrainingFault
from trainer.settings import TrainerSettings
from trainer.start import mark, mark_process
from trainer.threads import use_cores

LINGER_S = 60.0  # what is left to do after the workers' verdict takes a few seconds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="drive one attempt of a job on the Ray cluster at hand")
    run.add_argument("prefix", help="the job's prefix, s3://bucket/project/job")
    run.add_argument("attempt", type=int, help="the attempt's number, from 1")
    evaluate = commands.add_parser("evaluate", help="evaluate pulled checkpoints on their held-out images")
    evaluate.add_argument(
        "directories", type=Path, nargs="+", metavar="directory",
        help="where `resforge pull` wrote a checkpoint; several are an ensemble",
    )  # fmt: skip
    evaluate.add_argument(
        "--views", choices=("centre", "ten-crop", "multi-scale"), default="centre",
        help="what is averaged for an image (He et al. 2015, section 3.4); default: one centred crop",
    )  # fmt: skip
    evaluate.add_argument("--location", help="where the data lie, for formats that do not come with the trainer")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.command == "run":
        return _run(arguments.prefix, arguments.attempt, TrainerSettings.from_environment())
    return _evaluate(arguments, TrainerSettings.from_environment())


def _run(uri: str, attempt: int, settings: TrainerSettings) -> int:
    """Drive the attempt and end this process; returns only where the arguments are wrong."""
    from trainer.console import shipped
    from trainer.pod import Pod
    from trainer.streams import Shipper

    place = urlsplit(uri)
    if place.scheme != "s3" or not place.netloc or not place.path.strip("/"):
        print(f"{uri!r} is no job's prefix; one looks like s3://bucket/project/job", file=sys.stderr)
        return 2
    store = ObjectStore(place.netloc, endpoint=settings.s3_endpoint)
    prefix = JobPrefix(place.path.strip("/") + "/")
    keys = prefix.attempt(attempt)
    beats, ended, pod = 0, None, Pod(settings.pod)
    mark_process("driver")

    def beat(shipper: Shipper) -> None:
        nonlocal beats, ended
        beats += 1
        if ended is None and beats % 10 == 0 and store.find(keys.verdict) is not None:
            ended = time.monotonic()
        if ended is not None and time.monotonic() - ended > LINGER_S:  # Ray's end of the workers hangs
            store.put(keys.result, store.get(keys.verdict), "application/json")
            os._exit(4)
        heartbeat = Heartbeat(at=datetime.now(UTC), beat=beats, every_s=1.0, leaves=pod.ends)
        shipper.document(keys.heartbeat, heartbeat)

    pod.hold()
    with Shipper(store, keys, every=beat) as shipper, shipped(shipper, attempt):
        logging.basicConfig(level=logging.INFO, format="%(asctime)s driver %(levelname)s %(name)s: %(message)s")
        result = None
        try:
            # Imported here, since either takes seconds, and the sign of life comes first.
            job = JobDocument.model_validate_json(store.get(prefix.spec))
            if job.spec.kind == "train" and job.spec.scaling.workers > 1:
                # Ray Train looks after its workers every two seconds by default, which a short job would wait for.
                os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
                os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "180")
                # One more process that tells workers of nodes that are drained; ours don't ask it.
                os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
                os.environ.setdefault("RAY_DEDUP_LOGS", "0")
                from trainer.driver import drive
            else:
                from trainer.single import drive
            mark("driver imported")
            result = drive(store, prefix, attempt, job, settings)
        except Exception:
            logging.getLogger("trainer").exception("the driver of %s, attempt %d, failed", uri, attempt)
        logging.shutdown()
    if result is not None:  # the last object of all: whoever sees it sees a complete attempt
        store.put(keys.result, result.to_bytes(), "application/json")
    # Not by way of Ray's farewells: they have been seen to hang and to crash, and what counts is written.
    os._exit(3 if result is None else 1 if result.outcome == "failed" else 0)


def _progress(done: int, total: int) -> None:
    """One line that grows, for people; it ends before anything else is said."""
    if sys.stderr.isatty():
        print(f"\r{done}/{total} images", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _evaluate(arguments: argparse.Namespace, settings: TrainerSettings) -> int:
    from trainer.evaluate import evaluate_checkpoint

    def bucket(name: str) -> ObjectStore:
        return ObjectStore(name, endpoint=settings.s3_endpoint)

    directories: list[Path] = arguments.directories
    use_cores(1)  # as the workers evaluated it
    try:
        if len(directories) == 1 and arguments.views == "centre":
            point = evaluate_checkpoint(directories[0], location=arguments.location, store_factory=bucket)
        else:
            from trainer.protocols import evaluate_folders

            point = evaluate_folders(
                directories, arguments.views, location=arguments.location, store_factory=bucket,
                progress=_progress,
            )  # fmt: skip
    except (CorruptCheckpoint, TrainingFault, StorageError, OSError, ValueError) as error:
        print(f"{' '.join(map(str, directories))} can't be evaluated: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(point.model_dump(mode="json")))
    else:
        loss = "not finite" if point.loss is None else f"{point.loss:.4f}"
        print(f"top-1 {point.top1:.2%}, top-5 {point.top5:.2%}, loss {loss} on {point.images} held-out images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
