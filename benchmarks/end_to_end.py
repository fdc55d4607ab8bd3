"""Training from photographs in S3 against the same steps on images that lie on the device: does the loader keep up?

    python benchmarks/end_to_end.py [--depth 50] [--size 224] [--batch 256] [--images 20480] [--rounds 6] [--json]
    python benchmarks/end_to_end.py --data s3://bucket/imagenet    # your own shards, from `resforge data ingest`

Three sides take turns in one run, with one network and one optimiser, whose step is compiled on a GPU:

- on the device: some batches of the same images, decoded before, which lie on the device, again and again;
- first epoch: batches from shards in S3, with an empty cache: fetched, checked, decoded, cropped and sent;
- later epoch: the same with all shards in the cache.

Speeds are taken from the end of the first step to that of the last, as a long run has them. The two epochs are set
against each other whole, from the opening of the data on, since most of a short epoch's shards are fetched before its
first step. Without --data the images are JPEGs of 500x375 made here, served by a real S3 server on this machine.

A GPU with 16 cores is what the targets are for. On a CPU the defaults are small (64x64), to show that the
loader keeps out of the way: torch has one core, the loader is given all, and a step takes a core some 40 times as long
as decoding.
Writes docs/results/end-to-end.md. Needs torch, and neither Ray nor Lightning.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "docs" / "results" / "end-to-end.md"
sys.path.insert(0, str(ROOT))  # the S3 server is that of the tests

from benchmarks import shards, table  # noqa: E402
from resforge.jobs import DatasetInfo  # noqa: E402
from resforge.s3 import ObjectStore, StorageError  # noqa: E402
from resforge.spec import AugmentSpec, ModelSpec, OptimSpec  # noqa: E402
from trainer.data.loader import Batch, train_loader  # noqa: E402
from trainer.data.photographs import ShardSet  # noqa: E402
from trainer.data.sampler import TrainSampler  # noqa: E402
from trainer.data.sets import input_normalisation, open_dataset  # noqa: E402
from trainer.data.shards import MANIFEST, ShardManifest  # noqa: E402
from trainer.models import build  # noqa: E402
from trainer.optim import build_optimizer  # noqa: E402
from trainer.step import compiled, forward_pass  # noqa: E402

SIDES = ("on the device", "first epoch", "later epoch")
AUGMENT = AugmentSpec(flip=True, area=(0.08, 1))
HELD = 8  # batches on the device
DISTINCT = 1000  # images that are made; more are copies
TARGET, FIRST_TARGET, WAITING = 0.98, 0.9, 0.02


@dataclass(frozen=True)
class Setting:
    """What is trained on a kind of device, of images that are made here."""

    depth: int
    size: int
    batch: int
    images: int
    shard_images: int


SETTINGS = {"cpu": Setting(50, 64, 16, 256, 4), "cuda": Setting(50, 224, 256, 20_480, 256)}


class Training:
    """One network and its step, which all sides share. `images` are only asked what they are."""

    def __init__(self, images: ShardSet, device: torch.device, depth: int) -> None:
        info, self._device = images.info, device
        described = ModelSpec.model_validate({"family": "imagenet", "depth": depth}).network(
            channels=info.channels, classes=info.classes, image_size=info.image_size
        )
        torch.manual_seed(0)
        network = build(described).to(device, memory_format=torch.channels_last).train()
        self._forward: Callable[..., Tensor] = forward_pass(
            network, input_normalisation(images, "channel").to(device).normalise
        )
        if device.type == "cuda":
            self._forward = compiled(self._forward, "default")
        self._optimizer = build_optimizer(OptimSpec(), network)

    def step(self, pixels: Tensor, labels: Tensor) -> None:
        """Of (N, H, W, C) uint8 and (N,) int64, wherever they lie."""
        pixels, labels = (tensor.to(self._device, non_blocking=True) for tensor in (pixels, labels))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            loss = functional.cross_entropy(self._forward(pixels), labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()

    def wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def run(self, opened: Callable[[], Iterator[Batch]]) -> dict[str, float]:
        """Open batches and train on all of them.

        Returns:
            `first_s` to the end of the first step, `seconds` from there to the end of the last and `cpu_s` of the
            process meanwhile, `images` in these steps, and `waited_s` for batches, as the thread that trains saw it.
        """
        began, waited, images = time.perf_counter(), 0.0, 0
        batches = opened()
        self.step(*next(batches))
        self.wait()
        first, cpu = time.perf_counter(), time.process_time()
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            waited += time.perf_counter() - asked
            images += len(batch[1])
            self.step(*batch)
        self.wait()
        return {
            "first_s": first - began, "seconds": time.perf_counter() - first, "cpu_s": time.process_time() - cpu,
            "images": images, "waited_s": waited,
        }  # fmt: skip


def measure(
    device: torch.device, info: DatasetInfo, store: ObjectStore, depth: int, batch: int, steps: int | None, rounds: int
) -> dict[str, Any]:
    """Let the sides take turns, each an epoch, or `steps` of it."""
    cuda, cpus = device.type == "cuda", len(os.sched_getaffinity(0))
    kept: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="resforge-bench-") as name:
        cache = Path(name) / "cache"

        def opened() -> ShardSet:
            found = open_dataset(info, "train", store_factory=lambda _: store, cache_dir=cache)
            assert isinstance(found, ShardSet)
            return found

        def batches() -> Iterator[Batch]:
            found = opened()
            sampler = TrainSampler(len(found), batch, seed=0, total_steps=count, order=found.order(batch, 0))
            return iter(train_loader(found, sampler, AUGMENT, cpus=cpus, pin_memory=cuda))

        images = opened()
        count = min(steps or len(images), len(images) // batch)
        if count < 2:
            raise SystemExit(f"{len(images)} images are less than two batches of {batch}; --batch makes them smaller")
        training = Training(images, device, depth)
        held = [tuple(tensor.to(device) for tensor in one) for one in islice(batches(), HELD)]
        for one in held:  # compiled and warm
            training.step(*one)
        training.wait()
        for number in range(rounds):
            shutil.rmtree(cache)
            for side in SIDES:
                kept[side].append(training.run((lambda: islice(cycle(held), count)) if side == SIDES[0] else batches))
                print(f"round {number + 1} of {rounds}, {side}: {_speed(kept[side][-1]):,.1f} images/s",
                      file=sys.stderr, flush=True)  # fmt: skip
    return {"sides": kept, "steps": count, "cpus": cpus, "images": len(images), "shards": len(set(images._names))}


def _speed(turn: dict[str, float]) -> float:
    return turn["images"] / turn["seconds"]


def made(setting: Setting, size: int, images: int, server: Any, folder: Path) -> DatasetInfo:
    """Shards of JPEGs made here, put on the S3 server."""
    some = shards.photographs(min(DISTINCT, images))
    whole = [some[number % len(some)] for number in range(images)]
    info = shards.write(folder / "photos", whole, shard_images=setting.shard_images)
    for path in sorted((folder / "photos").rglob("*")):
        if path.is_file():
            server.store().upload(f"photos/{path.relative_to(folder / 'photos').as_posix()}", path)
    shutil.rmtree(folder / "photos")
    return info.model_copy(update={"location": server.store().uri("photos"), "image_size": size})


def given(location: str, size: int) -> tuple[DatasetInfo, ObjectStore]:
    """A data set that lies in S3 already."""
    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    if not location.startswith("s3://") or not prefix:
        raise SystemExit(f"--data {location} should look like s3://bucket/prefix, where {MANIFEST} lies")
    store = ObjectStore(bucket, endpoint=os.environ.get("AWS_ENDPOINT_URL"))
    try:
        manifest = ShardManifest.model_validate_json(store.get(f"{prefix.rstrip('/')}/{MANIFEST}"))
    except (StorageError, ValueError) as error:
        raise SystemExit(f"--data {location}: {error}") from error
    info = DatasetInfo(
        name="given", format="shards", location=location, channels=3, classes=len(manifest.classes), image_size=size
    )
    return info, store


def summed_up(found: dict[str, Any], what: str, device: torch.device, batch: int, rounds: int) -> dict[str, Any]:
    sides = found["sides"]
    rows: dict[str, Any] = {}
    for side in SIDES:
        turns = sides[side]
        ratios = [_speed(ours) / _speed(theirs) for ours, theirs in zip(turns, sides[SIDES[0]], strict=True)]
        rows[side] = {
            "images_per_second": sum(turn["images"] for turn in turns) / sum(turn["seconds"] for turn in turns),
            "ratio": statistics.median(ratios), "spread": [min(ratios), max(ratios)],
            "cpu_s": statistics.median(turn["cpu_s"] / turn["images"] for turn in turns),
            "waited": statistics.median(turn["waited_s"] / turn["seconds"] for turn in turns),
            "first_s": statistics.median(turn["first_s"] for turn in turns),
            "whole_s": statistics.mean(turn["first_s"] + turn["seconds"] for turn in turns),
        }  # fmt: skip
    held, _, later = (rows[side]["images_per_second"] for side in SIDES)
    first_epoch, later_epoch = (found["steps"] * batch / rows[side]["whole_s"] for side in SIDES[1:])
    return {
        "what": what, "device": device.type, "batch": batch, "rounds": rounds, "rows": rows,
        **{name: found[name] for name in ("steps", "cpus", "images", "shards")},
        "table": [
            table.row(f"{what} from S3, against images on the device", later, held, "images/s", least=TARGET),
            table.row(
                f"{what}, first epoch, whole, against a later one", first_epoch, later_epoch, "images/s",
                least=FIRST_TARGET,
            ),
            table.row("waiting for batches from S3, share of time", rows[SIDES[2]]["waited"], 1.0, "", most=WAITING),
        ],
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU",
        "torch": torch.__version__, "python": platform.python_version(), "load": os.getloadavg()[0],
        "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip


_ON_CPUS = (
    "The targets are for a GPU with 16 cores. Here torch has one core, the loader is given all, and a step takes a",
    "core some 40 times as long as decoding: it shows that the loader does not hold up the training, and what it costs",
    "in cores.", "",
)  # fmt: skip


def page(measured: dict[str, Any]) -> str:
    lines = [
        "# Training from S3", "", "`python benchmarks/end_to_end.py`", "",
        f"{measured['what']}, batches of {measured['batch']}: {measured['rounds']} rounds of {measured['steps']} steps",
        f"of each side, taking turns in one run, on {measured['images']:,} JPEGs in {measured['shards']} shards;",
        "all images by all seconds of a side, and medians. Speeds are those behind the first step, and the ratio that",
        "of a round's two speeds. Waiting is what the thread that trains spends on asking for the next batch; a GPU",
        "may have work meanwhile. The first step, which is compiled and warm, waits for the data to be opened and for",
        "the first shards, most of so few.", "",
        *(_ON_CPUS if measured["device"] == "cpu" else ()),
        "| | images/s | ratio | from | to | core ms an image | waiting | to the first step | whole |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for side, row in measured["rows"].items():
        lines.append(
            f"| {side} | {row['images_per_second']:,.1f} | {row['ratio']:.3f} | {row['spread'][0]:.3f} | "
            f"{row['spread'][1]:.3f} | {1000 * row['cpu_s']:.2f} | {row['waited']:.2%} | {row['first_s']:.2f} s | "
            f"{row['whole_s']:.2f} s |"
        )
    lines += [
        "", *table.lines(measured["table"]), "",
        f"{measured['date']}; {measured['hardware']}, {measured['cpus']} cores, at a load of {measured['load']:.1f}; "
        f"torch {measured['torch']}, Python {measured['python']}.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(SETTINGS), help="default: cuda where there is one")
    parser.add_argument("--depth", type=int, choices=[18, 34, 50, 101, 152], help="default 50")
    parser.add_argument("--size", type=int, help="side of the crops in pixels (default 224; 64 on a CPU)")
    parser.add_argument("--batch", type=int, help="images a step (default 256; 16 on a CPU)")
    parser.add_argument("--images", type=int, help="how many are made (default 20480; 256 on a CPU)")
    parser.add_argument("--data", help="s3://bucket/prefix of ingested shards, instead of images made here")
    parser.add_argument("--steps", type=int, help="of a side in a round, if not an epoch")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each side (default 6)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and write no page")
    arguments = parser.parse_args(argv)
    kind = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    device, setting = torch.device(kind, 0) if kind == "cuda" else torch.device(kind), SETTINGS[kind]
    if kind == "cpu":
        torch.set_num_threads(1)
    depth, size = arguments.depth or setting.depth, arguments.size or setting.size
    batch, images = arguments.batch or setting.batch, arguments.images or setting.images
    if min(arguments.rounds, arguments.steps or 2, batch) < 1 or arguments.steps == 1:
        parser.error("--rounds and --batch should be 1 or more, and --steps 2 or more")
    if not arguments.data and images < 2 * batch:
        parser.error(f"--images {images} should be at least two batches, {2 * batch}")
    with ExitStack() as stack:
        if arguments.data:
            info, store = given(arguments.data, size)
        else:
            from tests.s3 import start_s3

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="resforge-bench-")))
            server = start_s3(folder / "s3")
            stack.callback(server.stop)
            info, store = made(setting, size, images, server, folder), server.store()
        found = measure(device, info, store, depth, batch, arguments.steps, arguments.rounds)
    what = f"ResNet-{depth}, {size}x{size}, on {kind}"
    measured = summed_up(found, what, device, batch, arguments.rounds)
    if arguments.json:
        print(json.dumps(measured))
        return
    text = page(measured)
    print(text)
    RESULT.write_text(text)


if __name__ == "__main__":
    main()
