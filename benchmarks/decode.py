"""Images a second on two cores, from JPEGs to batches for training: random crops of 224 pixels, half of them mirrored.

    python benchmarks/decode.py [--rounds 7] [--images 512] [--json]

Against a pipeline in torchvision's style: Pillow decodes, crops and resizes in the two worker processes of a
DataLoader, which hand over normalised float32 (N, C, H, W). Ours gives uint8 (N, H, W, C), which the device normalises:
by two threads into a buffer that is used again and again, and by the two worker processes of a DataLoader. All sides
take turns in one run, on the same files and crops. The files are made here, from noise whose amplitude falls with its
frequency as it does in photographs, and are in memory from the beginning. Writes docs/results/decode.md.
"""

import argparse
import io
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # two of each side share two cores

import numpy as np
import psutil
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from trainer.data.decode import NATIVE, Box, cykooz_resizer, decode_crop, size_of

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "docs" / "results" / "decode.md"
sys.path.insert(0, str(ROOT))

from benchmarks import table  # noqa: E402

HEIGHT, WIDTH, SIZE, BATCH, WORKERS = 375, 500, 224, 64, 2
KINDS = {"smooth": (0.0, 70), "detailed": (4.0, 90)}  # standard deviation of grain added; JPEG quality
TARGETS = {"native, threads": 3.0, "fallback, threads": 1.7}
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

_RESIZER = ["cykooz.resizer"] if cykooz_resizer else []
_PACKAGES = ["pillow", "simplejpeg", *_RESIZER, "torch", "numpy"]

Crop = tuple[bytes, Box, bool]


def photograph(random: np.random.Generator, grain: float) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8, of amplitudes that fall as 1 / frequency^1.1, brightness stronger than colour."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = np.inf
    layers = [np.fft.irfft2(np.fft.rfft2(random.normal(size=(HEIGHT, WIDTH))) / frequency**1.1) for _ in range(3)]
    light, warmth, green = (layer[:, :WIDTH] / layer.std() for layer in layers)
    pixels = np.stack([light + 0.3 * warmth + 0.1 * green, light - 0.2 * green, light - 0.3 * warmth + 0.1 * green], 2)
    return np.clip(128 + 50 * pixels + random.normal(size=(HEIGHT, WIDTH, 1)) * grain, 0, 255).astype(np.uint8)


def draw_box(random: np.random.Generator) -> Box:
    """Between 8 and 100 % of the area, of ratios between 3:4 and 4:3, as torchvision's RandomResizedCrop draws it."""
    while True:
        area = HEIGHT * WIDTH * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if width <= WIDTH and height <= HEIGHT:
            left, top = int(random.integers(WIDTH - width + 1)), int(random.integers(HEIGHT - height + 1))
            return left, top, left + width, top + height


def make_crops(count: int, grain: float, quality: int) -> list[Crop]:
    random = np.random.default_rng(7)
    files = []
    for _ in range(min(count, 64)):
        file = io.BytesIO()
        Image.fromarray(photograph(random, grain)).save(file, "JPEG", quality=quality)
        files.append(file.getvalue())
    return [(files[index % len(files)], draw_box(random), bool(random.random() < 0.5)) for index in range(count)]


class TorchvisionStyle(Dataset[torch.Tensor]):
    def __init__(self, crops: Sequence[Crop]) -> None:
        self.crops = crops

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> torch.Tensor:
        data, box, flip = self.crops[index]
        with Image.open(io.BytesIO(data)) as file:
            image = file.convert("RGB").crop(tuple(map(int, box))).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        return tensor.sub_(MEAN[:, None, None]).div_(STD[:, None, None])


def fill(out: np.ndarray, crops: Sequence[Crop], native: bool) -> None:
    for pixels, (data, box, flip) in zip(out, crops, strict=True):
        size_of(data, native=native)  # who draws boxes needs it
        decode_crop(data, box, pixels, flip=flip, native=native)


class Ours(Dataset[torch.Tensor]):
    def __init__(self, crops: Sequence[Crop], native: bool) -> None:
        self.crops, self.native = crops, native

    def __len__(self) -> int:
        return len(self.crops)

    def __getitems__(self, indices: Sequence[int]) -> torch.Tensor:
        out = np.empty((len(indices), SIZE, SIZE, 3), dtype=np.uint8)
        fill(out, [self.crops[index] for index in indices], self.native)
        return torch.from_numpy(out)


def by_threads(crops: Sequence[Crop], native: bool) -> Callable[[], int]:
    """All batches by WORKERS threads, each filling its share of the one buffer."""
    buffer = np.empty((BATCH, SIZE, SIZE, 3), dtype=np.uint8)
    pool = ThreadPoolExecutor(WORKERS)

    def once() -> int:
        for first in range(0, len(crops), BATCH):
            batch = crops[first : first + BATCH]
            shares = [pool.submit(fill, buffer[part : len(batch) : WORKERS], batch[part::WORKERS], native)
                      for part in range(WORKERS)]  # fmt: skip
            for share in shares:
                share.result()
        return len(crops)

    return once


def by_processes(dataset: Dataset[torch.Tensor], **options: Any) -> Callable[[], int]:
    loader = DataLoader(dataset, BATCH, num_workers=WORKERS, persistent_workers=True, **options)
    return lambda: sum(len(batch) for batch in loader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="passes of each side (default 7)")
    parser.add_argument("--images", type=int, default=512, help="images of a pass (default 512)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and write no page")
    arguments = parser.parse_args()
    measured = {
        "what": "images a second from JPEGs to batches",
        "rows": [measure(kind, arguments.rounds, arguments.images) for kind in KINDS],
        "hardware": f"{os.cpu_count()} CPU cores ({_processor()})",
        "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "date": datetime.now(UTC).date().isoformat(),
        "load": os.getloadavg()[0],
    }
    measured["table"] = [
        table.row(
            f"decoding, {row['kind']}, {name}, against torchvision's style",
            statistics.median(row["speeds"][name]),
            statistics.median(row["speeds"]["torchvision style, processes"]),
            "images/s",
            least=TARGETS[name],
        )
        for row in measured["rows"]
        for name in TARGETS
        if name in row["speeds"]
    ]
    if arguments.json:
        print(json.dumps(measured))
    else:
        text = page(measured)
        RESULT.write_text(text)
        print(page)


def cpu_seconds() -> float:
    """Of this process and its workers, so far."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def measure(kind: str, rounds: int, count: int) -> dict[str, Any]:
    crops = make_crops(count, *KINDS[kind])
    whole = partial(by_processes, collate_fn=lambda batch: batch)
    sides = {"torchvision style, processes": by_processes(TorchvisionStyle(crops))}
    for name, native in [("native", True), ("fallback", False)]:
        if native <= NATIVE:
            sides[f"{name}, threads"] = by_threads(crops, native)
            sides[f"{name}, processes"] = whole(Ours(crops, native))
    for once in sides.values():
        once()  # starts its workers
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, once in sides.items():
            began, spent_before = time.perf_counter(), cpu_seconds()
            images = once()
            speeds[name].append(images / (time.perf_counter() - began))
            spent[name].append(1000 * (cpu_seconds() - spent_before) / images)
        print(
            f"{kind} {number + 1}/{rounds}", {name: round(all_[-1]) for name, all_ in speeds.items()}, file=sys.stderr
        )
    base = speeds["torchvision style, processes"]
    return {
        "kind": kind,
        "kilobytes": statistics.mean(len(data) for data, _, _ in crops) / 1000,
        "speeds": speeds,
        "cpu_ms": spent,
        # Of each round by itself, since what else runs on the machine comes and goes.
        "ratios": {name: [one / other for one, other in zip(all_, base, strict=True)] for name, all_ in speeds.items()},
    }


def _processor() -> str:
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]  # fmt: skip
    return f"{names[0]}, {platform.machine()}" if names else platform.machine()


def page(measured: dict[str, Any]) -> str:
    def spread(values: list[float], digits: int) -> str:
        return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"

    lines = []
    for row in measured["rows"]:
        base = row["cpu_ms"]["torchvision style, processes"]
        for name, speeds in row["speeds"].items():
            target = f"{TARGETS[name]:.1f}" if name in TARGETS else ""
            spent = row["cpu_ms"][name]
            saved = statistics.median(one / other for one, other in zip(base, spent, strict=True))
            lines.append(
                f"| {row['kind']}, {row['kilobytes']:.0f} KB | {name} | {spread(speeds, 0)} | "
                f"**{spread(row['ratios'][name], 2)}** | {target} | {statistics.median(spent):.2f} | {saved:.2f} |"
            )
    versions = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
    rounds = len(measured["rows"][0]["speeds"]["torchvision style, processes"])
    return f"""# Decoding

Images a second from JPEGs in memory to batches: random crops (8 to 100 % of the area) resized to {SIZE} pixels, half of
them mirrored. Torchvision style is Pillow, a tensor, normalised, in a DataLoader; ours hands over uint8, which the
device normalises. Native is the extension; the fallback is {" and ".join(["simplejpeg", *(_RESIZER or ["Pillow"])])}.
Two workers each. Made by `benchmarks/decode.py`: {rounds} rounds in which all sides take turns; medians (least to
most), and ratios of each round by itself. CPU is what an image takes of all processes, in milliseconds, and how many
times less than in torchvision's style.

The files are {WIDTH}x{HEIGHT}, 4:2:0, made of noise whose amplitude falls as 1 / frequency^1.1; "detailed" has grain
besides, and a higher quality ({KINDS["detailed"][1]} for {KINDS["smooth"][1]}).

| files | decoded by | images a second | ratio | target | CPU | times less |
|---|---|---:|---:|---:|---:|---:|
{chr(10).join(lines)}

{measured["date"]}; {measured["hardware"]}; {versions}. Load at the end: {measured["load"]:.1f}.
"""


if __name__ == "__main__":
    main()
