"""Reading photographs from shards: what it costs beside decoding them, against WebDataset and LitData, and from S3.

    python benchmarks/shards.py [--images 1500] [--rounds 3] [--json]

The same JPEGs lie in shards of ours, which WebDataset reads too, and in LitData's own chunks. Every side takes turns in
one run. Measured are: bytes of images in the order of a training epoch, without decoding; one epoch of training batches
of four times the images from a real S3 server with an empty cache and with a full one, in seconds of a core as well,
since the server works on the same cores; the first batch of a run that resumes in the middle of a late epoch of a data
set of ImageNet's size; and the memory over an epoch. Writes docs/results/shards.md.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
from PIL import Image

from resforge.jobs import DatasetInfo
from resforge.spec import AugmentSpec
from trainer.data.files import LocalFiles
from trainer.data.loader import train_loader
from trainer.data.order import shard_order
from trainer.data.photographs import ShardSet
from trainer.data.sampler import TrainSampler
from trainer.data.sets import open_dataset
from trainer.data.shard_files import _Local
from trainer.data.shards import MANIFEST, ROW, ShardManifest, ShardWriter

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "docs" / "results" / "shards.md"
sys.path.insert(0, str(ROOT))  # the S3 server is that of the tests

from benchmarks import table  # noqa: E402
from benchmarks.table import row  # noqa: E402
from tests.s3 import start_s3  # noqa: E402

SIZE, BATCH, CLASSES, SHARD_IMAGES = 224, 64, 10, 250
COPIES = 4  # of the images, in an epoch from S3
AUGMENT = AugmentSpec(flip=True, scale=(256, 480))
IMAGENET = 1_281_167
PACKAGES = ("pillow", "numpy", "torch", "webdataset", "litdata")


def photographs(count: int) -> list[tuple[bytes, int]]:
    """JPEGs of 500x375 with smooth colours and some grain, about 60 KB each."""
    dice = np.random.default_rng(0)
    found = []
    for number in range(count):
        rough = Image.fromarray(dice.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(rough.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        pixels = np.clip(smooth + dice.normal(0, 6, smooth.shape[:2])[..., None], 0, 255).astype(np.uint8)
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
        found.append((buffer.getvalue(), number % CLASSES))
    return found


def write(folder: Path, images: list[tuple[bytes, int]], *, shard_images: int = SHARD_IMAGES) -> DatasetInfo:
    (folder / "train").mkdir(parents=True)
    shards = []
    for start in range(0, len(images), shard_images):
        name = f"train/{start:06d}.tar"
        writer = ShardWriter(folder / name)
        for number, (image, label) in enumerate(images[start : start + shard_images], start):
            writer.add(f"class-{label}/{number:06d}", "jpg", image, label)
        shard, index = writer.close(name)
        (folder / shard.index).write_bytes(index)
        shards.append(shard)
    names = tuple(f"class-{label}" for label in range(CLASSES))
    manifest = ShardManifest(classes=names, splits={"train": tuple(shards), "test": tuple(shards[:1])})
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    return DatasetInfo(
        name="photos", format="shards", location=str(folder), channels=3, classes=CLASSES, image_size=SIZE
    )


def opened(info: DatasetInfo, store: Any, cache: Path) -> ShardSet:
    found = open_dataset(info, "train", store_factory=lambda _: store, cache_dir=cache)
    assert isinstance(found, ShardSet)
    return found


def sampler(images: ShardSet) -> TrainSampler:
    steps = len(images) // BATCH
    return TrainSampler(len(images), BATCH, seed=0, total_steps=steps, order=images.order(BATCH, 0))


def timed(count: int, work: Callable[[], int]) -> float:
    """Microseconds for each of `count` images; `work` gives the bytes that it came upon, so that it can skip none."""
    gc.collect()
    began = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - began
    assert found > count * 1000
    return seconds / count * 1e6


def bytes_of_ours(images: ShardSet) -> int:
    order = shard_order(images._shards, BATCH, 0, 0)
    return sum(len(bytes(images.encoded(index))) for index in order.tolist())


def bytes_of_webdataset(folder: Path) -> int:
    import webdataset

    urls = [str(path) for path in sorted((folder / "train").glob("*.tar"))]
    # As its documentation trains: shards shuffled, and images within a buffer.
    data = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(1000)
    return sum(len(sample["jpg"]) for sample in data)


def bytes_of_litdata(folder: Path) -> int:
    import litdata

    data = litdata.StreamingDataset(str(folder), shuffle=True, seed=0)
    return sum(len(sample["image"]) for sample in data)


def write_litdata(folder: Path, images: list[tuple[bytes, int]]) -> None:
    from litdata.streaming.writer import BinaryWriter  # what its `optimize` writes with, in this process

    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_bytes=16 << 20)
    for number, (image, label) in enumerate(images):
        writer[number] = {"image": image, "label": label}
    writer.done()
    writer.merge()


def decoding(images: ShardSet) -> int:
    numbers = np.random.default_rng(0).random((len(images), 4), dtype=np.float32)
    out = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    for index in range(len(images)):
        images.train_image(index, numbers[index], AUGMENT, out)
    return len(images) * SIZE * SIZE


def epoch(images: ShardSet) -> int:
    return sum(pixels.numel() for pixels, _ in train_loader(images, sampler(images), AUGMENT, cpus=2))


def resuming() -> float:
    """Seconds from nothing to a step in the middle of a late epoch of 1,281,167 images in 1,282 shards."""
    shards = np.repeat(np.arange(1282, dtype=np.int32), 1000)[:IMAGENET]
    rows = np.zeros(IMAGENET, dtype=ROW)
    info = DatasetInfo(name="imagenet", format="shards", channels=3, classes=1000, image_size=SIZE)
    images = ShardSet(info, "", [""] * 1282, shards, rows, _Local(LocalFiles(ROOT), ()))
    began = time.perf_counter()
    steps = IMAGENET // 256
    run = TrainSampler(
        IMAGENET, 256, seed=0, start_step=88 * steps + 1234, total_steps=90 * steps, order=images.order(256, 0)
    )
    next(iter(run))
    return time.perf_counter() - began


def resident() -> float:
    return psutil.Process().memory_info().rss / 2**20


def measure(count: int, rounds: int) -> dict[str, Any]:
    images = photographs(count)
    kept: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        info = write(folder / "shards", images)
        size = sum(len(image) for image, _ in images) / count
        sides: dict[str, Callable[[], int]] = {
            "ours": lambda: bytes_of_ours(opened(info, None, folder / "none")),
            "decoding": lambda: decoding(opened(info, None, folder / "none")),
        }
        if _there("webdataset"):
            sides["webdataset"] = lambda: bytes_of_webdataset(folder / "shards")
        if _there("litdata"):
            write_litdata(folder / "litdata", images)
            sides["litdata"] = lambda: bytes_of_litdata(folder / "litdata")
        for _ in range(rounds):
            for side, work in sides.items():
                kept.setdefault(side, []).append(timed(count, work))
        server = start_s3(folder / "s3")
        try:
            assert server.process is not None
            serving = psutil.Process(server.process.pid)
            store = server.store()
            info = write(folder / "more", images * COPIES)
            for path in (folder / "more").rglob("*"):
                if path.is_file():
                    store.upload(f"photos/{path.relative_to(folder / 'more').as_posix()}", path)
            stored = info.model_copy(update={"location": store.uri("photos")})
            growth = []
            for turn in range(rounds):
                cache = folder / f"cache-{turn}"
                for side in ("cold", "warm"):
                    before, own, served = resident(), time.process_time(), sum(serving.cpu_times()[:2])
                    took = timed(count * COPIES, lambda: epoch(opened(stored, store, cache)))  # noqa: B023
                    kept.setdefault(side, []).append(took)
                    work = {f"{side} own": time.process_time() - own}
                    work[f"{side} server"] = sum(serving.cpu_times()[:2]) - served
                    for whose, seconds in work.items():
                        kept.setdefault(whose, []).append(seconds / (count * COPIES) * 1e6)
                growth.append(resident() - before)
        finally:
            server.stop()
    microseconds = {side: statistics.median(values) for side, values in kept.items()}
    spread = {side: (min(values), max(values)) for side, values in kept.items()}
    resumed = statistics.median(resuming() for _ in range(rounds))
    ours, decoded = microseconds["ours"], microseconds["decoding"]
    rows = [row("reading a shard, beside decoding", ours, decoded, "us an image", most=0.05)]
    rows += [
        row(f"reading a shard, against {side}", ours, microseconds[side], "us an image", most=1.0)
        for side in ("webdataset", "litdata")
        if side in microseconds
    ]
    cold, warm = (1e6 / microseconds[side] for side in ("cold", "warm"))
    rows.append(row("first epoch from S3, against a later one", cold, warm, "images/s", least=0.9))
    cold, warm = (1e6 / microseconds[f"{side} own"] for side in ("cold", "warm"))
    rows.append(row("the same, of the trainer's own work", cold, warm, "images/core-s", least=0.9))
    rows.append(row("resuming in epoch 88 of ImageNet, against a second", resumed, 1.0, "s", most=1.0))
    return {
        "at": datetime.now(UTC).date().isoformat(), "images": count, "bytes": size, "rounds": rounds,
        "microseconds": microseconds, "spread": spread, "growth_mib": growth[-1], "table": rows,
        "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "versions": {name: version(name) for name in PACKAGES if _there(name)}, "python": platform.python_version(),
    }  # fmt: skip


def _there(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def page(measured: dict[str, Any]) -> str:
    spread = measured["spread"]
    lines = [
        "# Reading shards",
        "",
        "`python benchmarks/shards.py`",
        "",
        f"{measured['images']} JPEGs of 500x375, {measured['bytes'] / 1000:.0f} KB each, in shards of {SHARD_IMAGES}; "
        f"median of {measured['rounds']} rounds, all sides in turns.",
        "",
        "| | microseconds an image | from | to |",
        "|---|---:|---:|---:|",
    ]
    names = {
        "ours": "reading, ours, in an epoch's order", "webdataset": "reading, webdataset, shuffle(1000)",
        "litdata": "reading, litdata, shuffled", "decoding": "decoding and cropping, one thread",
        "cold": "an epoch of batches from S3, two threads, empty cache", "warm": "the same, full cache",
        "cold own": "core time of the process that trains, empty cache", "warm own": "the same, full cache",
        "cold server": "core time of the S3 server, empty cache",
    }  # fmt: skip
    for side, name in names.items():
        if side in spread:
            low, high = spread[side]
            lines.append(f"| {name} | {measured['microseconds'][side]:.1f} | {low:.1f} | {high:.1f} |")
    lines += ["", *table.lines(measured["table"])]
    told = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
    lines += [
        "",
        f"Memory grew by {measured['growth_mib']:.1f} MiB over the last epoch.",
        "",
        f"{measured['at']}; {measured['cores']} cores ({measured['cpu']}), Python {measured['python']}, {told}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object, and write no page")
    arguments = parser.parse_args()
    measured = measure(arguments.images, arguments.rounds)
    if arguments.json:
        print(json.dumps(measured))
        return
    text = page(measured)
    print(text)
    RESULT.write_text(text)


if __name__ == "__main__":
    main()
