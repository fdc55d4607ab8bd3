"""What the service costs: images/s through the whole path against those of the bare step, taking turns in one run.

    python benchmarks/overhead.py [--steps 420] [--device cpu] [--json]

ResNet-20 on a CPU (batches of 128, 32x32, one thread), or ResNet-50 on a GPU (256, 224x224, bf16, channels_last), on
synthetic images, compiled there. Three processes do the same steps on the same batches:

- bare: the network, the optimiser and the images' normalisation in a loop, and nothing else;
- service: `trainer.worker.run` in a world of one: Lightning, DDP, callbacks, telemetry at its default pace, a real S3
  server, a checkpoint every 200 steps, and no evaluation on the way;
- waiting: the same, but that the training waits for each checkpoint to be written.

They hand each other a baton every few steps, so that only one computes at a time and whatever else the machine does
meets all of them. The service's side gives it away inside its report, where the device has caught up. Writes
docs/results/overhead.md.
"""

import argparse
import json
import logging
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from resforge import metrics
from resforge.jobs import DatasetInfo
from resforge.metrics import Metric
from resforge.s3 import ObjectStore
from resforge.spec import TrainSpec
from resforge.storage import AttemptDocument, JobDocument, JobPrefix

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the S3 server is that of the tests

from benchmarks import table  # noqa: E402
from tests.s3 import start_s3  # noqa: E402

RESULT = ROOT / "docs" / "results" / "overhead.md"
SIDES = ("bare", "service", "waiting")
EVERY = 200  # steps between checkpoints
BLOCKED = 0.02  # the target for the share of time that checkpoints block

# Looked into by hand, on 2026-11-28, with other work on the same two cores.
TRIED = """\
What was tried, on 2 CPU cores with other work beside it:

- Steps that take little time beside what the service adds (8 layers, batches of 32 of 8x8): 2.0 to 4.4 ms of the
  processor a step more than the bare step's 8.5, in two runs. Of ResNet-20's step, of 0.4 s or more here, that is
  about one per cent, which is less than the noise of the table.
- A profile of these steps: sending out batch norm's buffers, in a world of one to nobody, was 14 % of them. It is off
  now for work of one process. By the processor's time that gave 0.2 to 0.5 ms a step.
- Lightning's strategy for one device instead of DDP: no difference that stood out of the noise (2.2 to 2.6 ms more
  than the bare step, against 2.0 to 3.0 with DDP). It was not taken up.
- A checkpoint of ResNet-50's size (205 MB): 0.04 s to copy on a CPU, 0.6 s the first time, when the memory is new. What
  writes it holds Python's lock for 0.2 s on end in `safetensors`, and 0.03 s in `torch.save`, at a load of about ten:
  a GPU that has no work queued waits for so long. Nothing was done about that.
- Where the noise comes from: processes of the same code differ. In a run of 2026-11-28 the side that waits for its
  checkpoints, and so does more, took 0.7 % more of the processor than the bare step, and the one that doesn't 5.3 %.
  Six runs gave 0.895, 0.92, 0.934, 0.950, 0.999 and 1.019 by the clock. Each side is one process a run here; what
  would tell more is many short ones.
"""


@dataclass(frozen=True)
class Setting:
    """What is trained on a kind of device, and how near to the bare step it must come."""

    name: str
    model: dict[str, Any]
    data: DatasetInfo
    batch: int
    augment: dict[str, Any]
    target: float


def _synthetic(size: int, classes: int, images: int) -> DatasetInfo:
    return DatasetInfo(
        name="synthetic", format="synthetic", channels=3, classes=classes, image_size=size,
        train_images=images, test_images=max(256, classes),
    )  # fmt: skip


SETTINGS = {
    "cpu": Setting(
        "ResNet-20", {"family": "cifar", "depth": 20}, _synthetic(32, 10, 12_800), 128, {"pad": 4, "flip": True}, 0.95
    ),
    # Images go in as they are: cropping them in the one process that trains would be what is measured.
    "cuda": Setting("ResNet-50", {"family": "imagenet", "depth": 50}, _synthetic(224, 1000, 5_120), 256, {}, 0.99),
}


def spec(setting: Setting, device: str, steps: int) -> TrainSpec:
    return TrainSpec.model_validate(
        {
            "model": setting.model,
            "data": {"dataset": "synthetic", "augment": setting.augment},
            "optim": {"schedule": {"kind": "constant"}},
            "training": {"global_batch": setting.batch, "steps": steps, "evaluate_every_epochs": 1_000_000},
            "scaling": {"gpus_per_worker": int(device == "cuda")},
            "checkpoint": {"every_steps": EVERY, "every_epochs": None},
        }
    )


class Baton:
    """One side's end: it computes only while it has it, and notes how long it had it each time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._began: tuple[float, float] | None = None
        self.times: list[float] = []
        self.cpu: list[float] = []  # of all threads of the process

    def turn(self) -> None:
        """End this side's turn, and return when the next one begins. What came before the first is not counted."""
        now, cpu = time.perf_counter(), time.process_time()
        if self._began is not None:
            self.times.append(now - self._began[0])
            self.cpu.append(cpu - self._began[1])
        self._connection.send("done")
        self._connection.recv()
        self._began = time.perf_counter(), time.process_time()


def bare(job: JobDocument, device: str, block: int, baton: Baton) -> dict[str, Any]:
    """The step alone, on the batches that the service takes."""
    import torch
    from torch.nn import functional

    from trainer.data.loader import train_loader
    from trainer.data.sampler import TrainSampler
    from trainer.data.sets import input_normalisation
    from trainer.data.splits import open_split
    from trainer.initial import described
    from trainer.models import build
    from trainer.optim import build_optimizer
    from trainer.step import compile_mode, compiled, forward_pass

    assert isinstance(job.spec, TrainSpec)
    torch.set_num_threads(1)
    training, cuda = job.spec.training, device == "cuda"
    assert training.steps is not None
    images = open_split(job, "train", store_factory=lambda name: ObjectStore(name), cache_dir=Path())
    normalisation = input_normalisation(images, job.spec.data.mean).to(device)
    torch.manual_seed(training.seed)
    network = build(described(job)).to(device, memory_format=torch.channels_last)
    forward, mode = forward_pass(network, normalisation.normalise), compile_mode(training, torch.device(device))
    if mode is not None:
        forward = compiled(forward, mode)
    optimizer = build_optimizer(job.spec.optim, network)
    sampler = TrainSampler(len(images), training.global_batch, seed=training.seed, total_steps=training.steps)
    network.train()
    for step, (pixels, labels) in enumerate(train_loader(images, sampler, job.spec.data.augment, pin_memory=cuda)):
        if step % block == 0 and step:
            if cuda:
                torch.cuda.synchronize()
            baton.turn()
        pixels, labels = pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)  # noqa: PLW2901
        with torch.autocast(device, dtype=torch.bfloat16, enabled=cuda):
            loss = functional.cross_entropy(forward(pixels), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    if cuda:
        torch.cuda.synchronize()
    baton.turn()
    return {}


def service(store: ObjectStore, prefix: JobPrefix, device: str, block: int, baton: Baton) -> dict[str, Any]:
    """The whole path, as a worker of a job for one process goes it."""
    from trainer.lean import import_lightning

    import_lightning()
    import torch
    import torch.distributed as dist
    from lightning.pytorch.plugins.environments import TorchElasticEnvironment
    from lightning.pytorch.strategies import DDPStrategy

    from trainer.worker import Place, run

    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "0"}
    os.environ.update(alone, TORCHELASTIC_RUN_ID="benchmark")
    dist.init_process_group("nccl" if device == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    blocked, written = [0.0], [0.0]

    def export(values: dict[Metric, float], /, **labels: str) -> None:
        if labels.get("phase") == "checkpoint":
            blocked.append(values[metrics.WORKER_SECONDS])
        if metrics.CHECKPOINT_SECONDS in values:
            written.append(values[metrics.CHECKPOINT_SECONDS])
        if values.get(metrics.STEP, 1) % block == 0:
            baton.turn()

    place = Place(
        rank=0, workers=1, device=torch.device(device, 0) if device == "cuda" else torch.device("cpu"),
        strategy=DDPStrategy, environment=TorchElasticEnvironment(), export=export,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run(store, prefix, 1, place, cache=Path(folder))
    return {"blocked_s": blocked[-1], "written_s": written[1:]}


def side(
    name: str, connection: Connection, job: JobDocument, device: str, block: int, bucket: str, endpoint: str
) -> None:
    """One process. Its last message is what it measured."""
    logging.basicConfig(level=logging.WARNING)
    store, prefix, baton = ObjectStore(bucket, endpoint=endpoint), JobPrefix.of("benchmark", job.job), Baton(connection)
    if name == "bare":
        found = bare(job, device, block, baton)
    else:
        if name == "waiting":
            _wait_for_each()
        store.put(prefix.spec, job.to_bytes())
        store.put(prefix.attempt(1).attempt, AttemptDocument(number=1).to_bytes())
        found = service(store, prefix, device, block, baton)
    connection.send({**found, "times": baton.times, "cpu": baton.cpu})
    connection.close()
    os._exit(0)


def _wait_for_each() -> None:
    """Have the training wait until each checkpoint is written."""
    from trainer.writer import Writer

    begin = Writer.begin

    def begin_and_wait(self: Writer, *given: Any, **named: Any) -> None:
        begin(self, *given, **named)
        if self._thread is not None:  # the next one finds out how it went
            self._thread.join()

    Writer.begin = begin_and_wait  # type: ignore[method-assign]


def measure(device: str, steps: int, block: int) -> dict[str, dict[str, Any]]:
    """Let the sides take turns until each has done its steps."""
    setting, context = SETTINGS[device], multiprocessing.get_context("spawn")
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="resforge-bench-") as folder:
        s3 = start_s3(Path(folder))
        os.environ.update(s3.environment)
        ends: dict[str, Connection] = {}
        processes = []
        try:
            for name in SIDES:
                ends[name], theirs = context.Pipe()
                job = JobDocument(
                    job=name, project="benchmark", spec=spec(setting, device, steps), dataset=setting.data
                )
                arguments = (name, theirs, job, device, block, s3.bucket, s3.endpoint)
                processes.append(context.Process(target=side, args=arguments, daemon=True))
                processes[-1].start()
                theirs.close()
            for end in ends.values():  # each has warmed up and stands before its first turn
                end.recv()
            rounds = 0
            while len(found) < len(SIDES):
                # In another order each time, so that none always follows the same one.
                order = SIDES[rounds % len(SIDES) :] + SIDES[: rounds % len(SIDES)]
                for name in order:
                    if name in found:
                        continue
                    ends[name].send("go")
                    answer = ends[name].recv()
                    if answer != "done":
                        found[name] = answer
                rounds += 1
                print(f"{min(rounds * block + block, steps)} of {steps} steps", file=sys.stderr, flush=True)
        finally:
            for process in processes:
                process.kill()
                process.join()
            s3.stop()
    return found


def summed_up(device: str, block: int, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures of one run. What a side does before its first turn and behind its last is not counted."""
    times = {name: found[name]["times"] for name in SIDES}
    turns = len(times["bare"])
    setting = SETTINGS[device]
    rows: dict[str, Any] = {}
    for name in SIDES:
        pairs = [bare / ours for bare, ours in zip(times["bare"], times[name], strict=True)]
        rows[name] = {
            "images_per_second": turns * block * setting.batch / sum(times[name]),
            "ratio": sum(times["bare"]) / sum(times[name]),
            "cpu": sum(found["bare"]["cpu"]) / sum(found[name]["cpu"]),
            "median": statistics.median(pairs),
            "quartiles": [statistics.quantiles(pairs, n=4)[0], statistics.quantiles(pairs, n=4)[2]],
        }
        if name != "bare":
            checkpoints = (turns * block + block - 1) // EVERY
            share = found[name]["blocked_s"] / max(1, checkpoints) / (EVERY * sum(times[name]) / (turns * block))
            rows[name] |= {
                "blocked_s": found[name]["blocked_s"] / max(1, checkpoints),
                "blocked": share,
                "written_s": found[name]["written_s"],
            }
    import torch

    from trainer.hardware import device_name, versions

    return {
        "what": f"{setting.name}, batches of {setting.batch}, on {device}",
        "device": device,
        "steps": turns * block,
        "turns": turns,
        "block": block,
        "rows": rows,
        "table": [
            table.row(
                f"{setting.name} through the whole path, against the bare step",
                rows["service"]["images_per_second"],
                rows["bare"]["images_per_second"],
                "images/s",
                least=setting.target,
            ),
            table.row("blocked by checkpoints, share of time", rows["service"]["blocked"], 1.0, "", most=BLOCKED),
        ],
        "target": setting.target,
        "hardware": device_name(torch.device(device)) + ("" if device == "cuda" else ", one thread"),
        "load": os.getloadavg()[0],
        "versions": versions(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def page(measured: dict[str, Any]) -> str:
    rows = measured["rows"]

    def line(name: str, title: str) -> str:
        row = rows[name]
        ratio = "1" if name == "bare" else f"{row['ratio']:.3f}"
        spread = (
            "" if name == "bare" else f"{row['median']:.3f} ({row['quartiles'][0]:.3f} to {row['quartiles'][1]:.3f})"
        )
        cpu = "1" if name == "bare" else f"{row['cpu']:.3f}"
        blocked = "" if name == "bare" else f"{row['blocked_s']:.3f} s, {row['blocked']:.3%}"
        return f"| {title} | {row['images_per_second']:,.1f} | {ratio} | {spread} | {cpu} | {blocked} |"

    ours = rows["service"]
    verdict, by_cpu = ("met" if ours[by] >= measured["target"] else "missed" for by in ("ratio", "cpu"))
    crowded = measured["load"] > 1.5 * (os.cpu_count() or 1)
    caution = ["Other work crowded the machine: the clock's ratio says little, and should be taken again.", ""]
    blocked = "met" if ours["blocked"] < BLOCKED else "missed"
    versions = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
    return "\n".join(
        [
            "# What the service costs",
            "",
            f"{measured['what']}: images/s through the whole path (Lightning, DDP in a world of one, callbacks,",
            "telemetry, a real S3 server, a checkpoint every 200 steps) against those of the bare step. Made by",
            f"`benchmarks/overhead.py`: {measured['turns']} turns of {measured['block']} steps each, the sides taking",
            "turns in one run. The ratio is that of all images to all seconds; beside it the median of the turns'",
            "ratios, and their quartiles. The same by the processor's seconds, of all of a process's threads, depends",
            "less on what else the machine has to do. Blocked is how long the training stood still for one checkpoint,",
            "and the share that this is of 200 steps. A ratio above 1 is what else the machine had to do.",
            "",
            "| | images/s | ratio | by turns | by the processor's time | blocked |",
            "|---|---:|---:|---:|---:|---:|",
            line("bare", "the bare step"),
            line("service", "the service"),
            line("waiting", "the same, waiting for each checkpoint, much as it was before"),
            "",
            f"Target: a ratio of {measured['target']}, **{verdict}** by the clock, **{by_cpu}** by the processor;",
            f"blocked under {BLOCKED:.0%}, **{blocked}**.",
            "",
            *(caution if crowded else []),
            f"{measured['date']}; {measured['hardware']} ({platform.machine()}), at a load of {measured['load']:.1f};",
            f"{versions}.",
            "",
            TRIED,
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=420, help="optimiser steps of each side (default 420)")
    parser.add_argument("--block", type=int, default=20, help="steps of a turn, a multiple of ten (default 20)")
    parser.add_argument("--device", choices=list(SETTINGS), help="default: cuda where there is one")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and write no page")
    arguments = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    found = measure(device, arguments.steps, arguments.block)
    measured = summed_up(device, arguments.block, found)
    if arguments.json:
        print(json.dumps(measured))
    else:
        RESULT.write_text(page(measured))
        print(page(measured))


if __name__ == "__main__":
    main()
