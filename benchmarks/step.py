"""The training step on a GPU: images/s of ours and of others' loops, taking turns in one run, against the GPU's limits.

    python benchmarks/step.py [--depth 50 152] [--batch 256] [--rounds 9] [--only eager default ...] [--json]
    python benchmarks/step.py --device cpu --depth 18 --size 64 --batch 16 --rounds 3    # to try it; writes nothing

ResNet-50 and -152 (v1.5, which the others have), 224x224, bf16, channels_last, on uint8 images that lie on the device:
nothing is read, decoded or sent. A step is the images' normalisation, forward, loss, backward and SGD.

- eager: our step uncompiled, with torch's usual SGD; fused: with SGD in one kernel, as it is on a GPU.
- default, reduce-overhead, max-autotune: that compiled, in these modes of torch.compile; the last two with CUDA graphs.
- torchvision: its network in the loop of its reference recipe: AMP in fp16 with a GradScaler, channels_last, SGD, and
  accuracies read after each step. timm: its network and its SGD, AMP in fp16 with a scaler, channels_last, compiled.
  Both get images that are floats and normalised already, as their loaders hand them over. Left out where not installed.

First the limits are taken, of this device in this run: the rate of a large bf16 matrix product, by which the network's
operations are divided, and of a large copy, by which the bytes are divided that a step can't do without (`traffic`).
Writes docs/results/step.md. Needs torch, and neither Ray nor Lightning.
"""

import argparse
import importlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import table  # noqa: E402
from resforge.networks import Conv, ResidualNetwork  # noqa: E402
from resforge.spec import ModelSpec, OptimSpec  # noqa: E402
from trainer.data.transforms import Normalisation  # noqa: E402
from trainer.models import build  # noqa: E402
from trainer.optim import build_optimizer  # noqa: E402
from trainer.step import compiled, forward_pass  # noqa: E402

RESULT = ROOT / "docs" / "results" / "step.md"
CLASSES = 1000
MODES = ("default", "reduce-overhead", "max-autotune")
OURS = ("eager", "fused", *MODES)
OTHERS = ("torchvision", "timm")
TARGETS = {"torchvision": 1.35, "timm": 1.1}
BOUND = 0.55  # of the images/s that the fused traffic would let through
WARM_UP = 5  # steps: compiling, and recording CUDA graphs, takes three
MEAN, STD = torch.tensor([123.7, 116.3, 103.5]), torch.tensor([58.4, 57.1, 57.4])
# Bytes an image that others reckoned for such steps, in MB: unfused, fused, into convolutions.
PUBLISHED = {50: (471, 319, 197), 152: (997, 663, 411)}


# --- What a step can't do without


@dataclass(frozen=True)
class Traffic:
    """What a training step moves to and from memory, in bytes an image.

    Attributes:
        unfused: every operation reads and writes for itself.
        fused: a batch norm with its relu and its block's addition is one operation, or two where it needs a mean first.
        into_convolutions: these are computed where convolutions read and write.
    """

    unfused: float
    fused: float
    into_convolutions: float


def traffic(network: ResidualNetwork, *, width: int, batch: int) -> Traffic:
    """Count what a step moves, for a post-activation network.

    Nothing is read again that a kernel has read, so these are the least. For a convolution from x to y values, with the
    batch norm and relu behind it:

    - Unfused, forward: the convolution x + y; the norm 3y (mean and variance, then read and write); relu 2y. Backward:
      relu 3y; the norm 5y (two sums over 2y, then 2y and a write); the input's gradient y + x, the weights' y + x. A
      join adds 3z forward, has the relu instead of the last norm, and 3z where the gradients of its two uses are added.
    - Fused: relu and addition cost no pass of their own. A join reads its shortcut, z, and its gradient is read from
      two places, z. What relu let through is kept in bits, which are not counted.
    - Into convolutions: forward x + y, since the norm is applied where the next convolution reads, and its sums are
      taken where this one writes. Backward, the norm's gradient needs 2y (the gradient and the convolution's output)
      wherever dy is read, for either gradient, and x once more for relu and for the norm's sums before it. A join reads
      its shortcut and writes its output, 2z, and the gradients of its two uses are added by a read of z.

    The first convolution's input has no gradient; a strided 1x1 convolution reads what it looks at. The stem's pool and
    the mean before the classifier are the same in all three. Weights: each is cast, read by SGD with its momentum and
    gradient, and written with its momentum, 26 bytes a step. The images' normalisation, under 1 MB, is left out.

    Args:
        width: bytes of a value.
        batch: images a step, among which the weights' bytes are shared out.
    """
    plain = fused = within = 0.0

    def convolution(conv: Conv, *, relu: bool, gradient: bool = True) -> None:
        nonlocal plain, fused, within
        y = conv.out_channels * conv.size**2
        whole = conv.in_channels * (conv.size * conv.stride) ** 2
        x = conv.in_channels * conv.size**2 if conv.kernel == 1 else whole
        to_input = (y + whole) if gradient else 0
        plain += x + y + 3 * y + 5 * y + to_input + (y + x) + (5 * y if relu else 0)
        fused += x + y + 3 * y + 5 * y + to_input + (y + x)
        within += x + y + (2 * y + x) + (2 * y + whole + x if gradient else 0)

    convolution(network.stem, relu=True, gradient=False)
    if network.stem_pool:  # forward: read and write; backward: the same, with what was chosen in bytes beside it
        mapped = network.stem.out_channels * network.stem.size**2
        pool = 2 * (mapped + mapped / 4)
        plain, fused, within = plain + pool, fused + pool, within + pool
    for block in (block for stage in network.stages for block in stage):
        z = block.out_channels * block.convs[-1].size ** 2
        entered = block.in_channels * (block.convs[-1].size * block.stride) ** 2
        for conv in block.convs:
            convolution(conv, relu=conv is not block.convs[-1])
        if block.projection:
            convolution(block.projection, relu=False)
        plain += 3 * z + 5 * z + 3 * entered
        fused += z + entered
        within += 2 * z + entered
    last = 2 * network.features * network.stages[-1][-1].convs[-1].size ** 2  # the mean: read, and its gradient written
    weights = 26 * network.parameters / batch
    return Traffic(*(width * (values + last) + weights for values in (plain, fused, within)))


def operations(network: ResidualNetwork) -> float:
    """Floating-point operations of an image's step: two a multiply-add, forward and for both gradients; the stem's
    input has none."""
    return 2.0 * (3 * network.macs - network.stem.macs)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product; the best of some."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(_seconds(device, lambda: left @ right, 10))


def copy_rate(device: torch.device) -> float:
    """Bytes a second of a large copy, read and written; the best of some."""
    source = torch.empty(2**30 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    return 2 * source.numel() / min(_seconds(device, lambda: target.copy_(source), 20))


def _seconds(device: torch.device, work: Callable[[], Any], times: int) -> list[float]:
    found = []
    for _ in range(times + 2):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        found.append(time.perf_counter() - began)
    return found[2:]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- The sides: each gives a function that does one step, and returns the loss

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Setting:
    """What is trained, and on what."""

    device: torch.device
    depth: int
    size: int
    batch: int

    @property
    def dtype(self) -> torch.dtype:
        """As the service has it by default."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def network(self) -> ResidualNetwork:
        family = {"family": "imagenet", "depth": self.depth, "variant": "v1.5" if self.depth >= 50 else "v1"}
        described = ModelSpec.model_validate(family).network(channels=3, classes=CLASSES, image_size=self.size)
        assert isinstance(described, ResidualNetwork)
        return described

    def images(self) -> tuple[Tensor, Tensor]:
        """(N, size, size, 3) uint8 and (N,) int64, the same for every side."""
        dice = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (self.batch, self.size, self.size, 3), generator=dice, dtype=torch.uint8)
        return pixels.to(self.device), torch.randint(CLASSES, (self.batch,), generator=dice).to(self.device)


def ours(setting: Setting, name: str) -> Step:
    """Our step: `eager`, `fused`, or compiled in the mode `name`."""
    torch.manual_seed(0)
    device, cuda = setting.device, setting.device.type == "cuda"
    network = build(setting.network()).to(device, memory_format=torch.channels_last)
    normalisation = Normalisation(MEAN, STD).to(device)
    forward = forward_pass(network, normalisation.normalise)
    if name in MODES:
        forward = compiled(forward, name)
    optimizer = build_optimizer(OptimSpec(), network)
    if name == "eager":
        for group in optimizer.param_groups:
            group["fused"] = None  # torch's choice, which is several weights at once
    pixels, labels = setting.images()

    def step() -> Tensor:
        # As Lightning has it, which keeps no casts of weights.
        with torch.autocast(device.type, setting.dtype, enabled=cuda, cache_enabled=False):
            loss = functional.cross_entropy(forward(pixels), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def torchvision(setting: Setting) -> Step:
    """Torchvision's network in the manner of its reference recipe (references/classification, with --amp)."""
    models = importlib.import_module("torchvision.models")
    network = getattr(models, f"resnet{setting.depth}")(num_classes=CLASSES)
    network.to(setting.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    return _with_scaler(setting, network, network, optimizer, read=True)


def timm(setting: Setting) -> Step:
    """Timm's network and SGD in the manner of its train.py (--amp --channels-last --torchcompile)."""
    create = importlib.import_module("timm").create_model
    optim = importlib.import_module("timm.optim")
    network = create(f"resnet{setting.depth}", num_classes=CLASSES)
    network.to(setting.device, memory_format=torch.channels_last)
    optimizer = optim.create_optimizer_v2(network, opt="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)
    return _with_scaler(setting, network, torch.compile(network), optimizer, read=False)


def _with_scaler(
    setting: Setting, network: nn.Module, forward: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, *,
    read: bool,
) -> Step:  # fmt: skip
    """A loop in mixed precision. With `read`, the loss and both accuracies are read after each step."""
    device, cuda = setting.device, setting.device.type == "cuda"
    network.train()
    scaler = torch.amp.GradScaler(device.type, enabled=cuda)
    pixels, labels = setting.images()
    images = Normalisation(MEAN, STD).to(device).normalise(pixels)

    def step() -> Tensor:
        with torch.autocast(device.type, torch.float16 if cuda else torch.bfloat16, enabled=cuda):
            logits = forward(images)
            loss = functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if read:
            hits = logits.detach().topk(5, dim=1).indices == labels[:, None]
            _ = loss.item(), hits[:, 0].sum().item(), hits.sum().item()
        return loss.detach()

    return step


# --- The run


def prepared(setting: Setting, names: Sequence[str]) -> tuple[dict[str, Step], dict[str, str], dict[str, float]]:
    """The sides' steps, warmed up; why those that are left out can't run; and the seconds that warming up took."""
    steps: dict[str, Step] = {}
    left_out: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for name in names:
        began = time.perf_counter()
        try:
            step = {"torchvision": torchvision, "timm": timm}[name](setting) if name in OTHERS else ours(setting, name)
            for _ in range(WARM_UP):
                step()
            _wait(setting.device)
        except Exception as error:  # noqa: BLE001 - told beside the figures
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            left_out[name] = f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
            print(f"{name}: left out, {left_out[name]}", file=sys.stderr, flush=True)
            if setting.device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        steps[name], seconds[name] = step, time.perf_counter() - began
        print(f"{name}: ready after {seconds[name]:.0f} s", file=sys.stderr, flush=True)
    return steps, left_out, seconds


def measure(setting: Setting, names: Sequence[str], rounds: int, count: int) -> dict[str, Any]:
    """Let the sides take turns, each `count` steps in each round, behind one that is not counted."""
    torch._dynamo.reset()
    steps, left_out, warm = prepared(setting, names)
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, float] = {}
    order = list(steps)
    for number in range(rounds):
        for name in order[number % len(order) :] + order[: number % len(order)]:
            steps[name]()
            _wait(setting.device)
            began = time.perf_counter()
            for _ in range(count):
                loss = steps[name]()
            _wait(setting.device)
            speeds[name].append(count * setting.batch / (time.perf_counter() - began))
            losses[name] = float(loss)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return {"speeds": speeds, "left_out": left_out, "warm_up_s": warm, "losses": losses}


def summed_up(setting: Setting, found: dict[str, Any], matrix: float, copy: float) -> dict[str, Any]:
    """Medians and quartiles, ratios by round, and what the limits would let through, in images/s."""
    network = setting.network()
    moved = traffic(network, width=2 if setting.dtype is torch.bfloat16 else 4, batch=setting.batch)
    limits = {
        "operations": matrix / operations(network),
        "unfused": copy / moved.unfused,
        "fused": copy / moved.fused,
        "into_convolutions": copy / moved.into_convolutions,
    }
    speeds, rows = found["speeds"], {}
    for name, own in speeds.items():
        least, middle, most = _quartiles(own)
        rows[name] = {
            "images_per_second": middle, "quartiles": [least, most], "warm_up_s": found["warm_up_s"][name],
            "of_fused": middle / limits["fused"], "of_operations": middle / limits["operations"],
            "loss": found["losses"][name],
        }  # fmt: skip
        if "eager" in speeds:
            rows[name]["against_eager"] = _quartiles([a / b for a, b in zip(own, speeds["eager"], strict=True)])
    mine = [name for name in OURS if name in speeds]
    best = max(mine, key=lambda name: rows[name]["images_per_second"]) if mine else None
    lines = []
    if best is not None:
        what, fastest = f"ResNet-{setting.depth}, a step ({best})", rows[best]["images_per_second"]
        for other in OTHERS:
            if other in rows:
                theirs = rows[other]["images_per_second"]
                lines.append(table.row(f"{what}, against {other}", fastest, theirs, "images/s", least=TARGETS[other]))
        lines.append(table.row(f"{what}, of fused memory's bound", fastest, limits["fused"], "images/s", least=BOUND))
    return {
        "depth": setting.depth, "size": setting.size, "batch": setting.batch, "dtype": str(setting.dtype)[6:],
        "rounds": len(next(iter(speeds.values()), [])), "operations": operations(network), "limits": limits,
        "bytes": {name: getattr(moved, name) for name in ("unfused", "fused", "into_convolutions")},
        "rows": rows, "left_out": found["left_out"], "best": best, "table": lines,
    }  # fmt: skip


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return (values[0],) * 3
    least, middle, most = statistics.quantiles(values, n=4, method="inclusive")
    return least, middle, most


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "triton", "torchvision", "timm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        found |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    return found


def page(measured: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
    lines = [
        "# The training step", "",
        "Images/s of a step on images that lie on the device, all sides taking turns in one run (medians, quartiles).",
        "`benchmarks/step.py` says what each side is. In the same run a large matrix product came to "
        f"{measured['matrix'] / 1e12:,.2f} T operations/s,",
        f"and a large copy to {measured['copy'] / 1e9:,.1f} GB/s.", "",
    ]  # fmt: skip
    for one in measured["networks"]:
        limits, moved = one["limits"], one["bytes"]
        lines += [
            f"## ResNet-{one['depth']}", "",
            f"Batches of {one['batch']}, {one['size']}x{one['size']}, {one['dtype']}; {one['rounds']} rounds. "
            f"{one['operations'] / 1e9:,.1f} G operations an image.", "",
            "| limit | MB an image | images/s |", "|---|---:|---:|",
            f"| operations, by the matrix product | | {limits['operations']:,.0f} |",
            f"| memory, unfused | {moved['unfused'] / 1e6:,.0f} | {limits['unfused']:,.0f} |",
            f"| memory, norm, relu and addition fused | {moved['fused'] / 1e6:,.0f} | {limits['fused']:,.0f} |",
            f"| memory, these in convolutions | {moved['into_convolutions'] / 1e6:,.0f} | "
            f"{limits['into_convolutions']:,.0f} |", "",
        ]  # fmt: skip
        if one["depth"] in PUBLISHED and (one["size"], one["dtype"]) == (224, "bfloat16"):
            published = ", ".join(map(str, PUBLISHED[one["depth"]]))
            lines += [f"Others reckoned {published} MB an image for the three; they count less for joins.", ""]
        lines += [
            "| side | images/s | against eager | of fused memory's | of the operations' | loss | warm-up |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for name, row in one["rows"].items():
            ratios = "{1:.3f} ({0:.3f} to {2:.3f})".format(*row["against_eager"]) if "against_eager" in row else ""
            lines.append(
                f"| {name} | {row['images_per_second']:,.1f} ({row['quartiles'][0]:,.1f} to "
                f"{row['quartiles'][1]:,.1f}) | {ratios} | {row['of_fused']:.3f} | "
                f"{row['of_operations']:.3f} | {row['loss']:.3f} | {row['warm_up_s']:.0f} s |"
            )
        lines += ["", *(f"Left out: {name} ({why})." for name, why in one["left_out"].items()), ""]
    lines += [*table.lines(measured["table"]), ""]
    lines += [f"{measured['date']}; {measured['hardware']}; {versions}.", ""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try it (default cuda)")
    parser.add_argument("--depth", type=int, nargs="+", choices=[18, 34, 50, 101, 152], default=[50, 152])
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels (default 224)")
    parser.add_argument("--batch", type=int, default=256, help="images a step (default 256)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each side (default 9)")
    parser.add_argument("--steps", type=int, help="steps of a turn (default 20; 2 on a CPU)")
    parser.add_argument("--only", nargs="+", choices=[*OURS, *OTHERS], default=[*OURS, *OTHERS])
    parser.add_argument("--json", action="store_true", help="print one JSON object, and write no page")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"table": [], "left_out": "no GPU"}) if arguments.json else "no GPU")
        return
    cuda = arguments.device == "cuda"
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    matrix = matrix_rate(device, torch.bfloat16 if cuda else torch.float32)
    copy = copy_rate(device)
    networks = []
    for depth in arguments.depth:
        setting = Setting(device, depth, arguments.size, arguments.batch)
        found = measure(setting, arguments.only, arguments.rounds, arguments.steps or (20 if cuda else 2))
        networks.append(summed_up(setting, found, matrix, copy))
        if cuda:
            torch.cuda.empty_cache()
    rows = [row for one in networks for row in one["table"]]
    measured = {
        "networks": networks, "matrix": matrix, "copy": copy, "table": rows,
        "hardware": torch.cuda.get_device_name(device) if cuda else f"{platform.machine()} CPU, to try it",
        "versions": _versions(), "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(measured))
        return
    print(page(measured))
    if cuda:
        RESULT.write_text(page(measured))


if __name__ == "__main__":
    main()
