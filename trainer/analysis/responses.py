"""Layer responses: the standard deviation of each 3x3 layer's output, after batch normalisation and before the
nonlinearity or the addition, in evaluation mode (He et al. 2015, section 4.2, figure 7).

Units: those of the activations. Residual networks respond less than plain ones, deeper ones less still. Pitfalls: in
pre-activation order no batch norm stands behind a convolution, so its output itself is read, on another scale; over a
bottleneck only the 3x3 layers count, as in the paper; the deviation is over images, places and channels together, so a
layer whose channels differ in mean responds more.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

from resforge.spec.readings import ResponsesReading
from trainer.analysis.common import batches, finite, must_be_finite, png
from trainer.analysis.subject import Outcome, Progress, Spread, Subject
from trainer.models.residual import ResidualBlock

UNITS = {
    "layers": "names of the 3x3 layers in the order of the forward pass",
    "std": "standard deviation of the layer's response, in units of the activations; null where it is not finite",
    "mean_std": "mean of std over the layers; null where one is",
}


@torch.inference_mode()
def read(reading: ResponsesReading, subject: Subject, progress: Progress, spread: Spread) -> Outcome:
    network = subject.network
    must_be_finite(network)
    layers = _layers(network)
    sums = {name: [0.0, 0.0, 0] for name, _ in layers}

    def note(_module: nn.Module, _inputs: object, output: Tensor, *, name: str) -> None:
        values = output.double()
        sums[name][0] += float(values.sum())
        sums[name][1] += float(values.square().sum())
        sums[name][2] += values.numel()

    handles = [norm.register_forward_hook(partial(note, name=name)) for name, norm in layers]
    try:
        seen = 0
        for images, labels in batches(subject):
            network(images)
            seen += len(labels)
            progress(seen, len(subject.images))
    finally:
        for handle in handles:
            handle.remove()
    std = [_deviation(*found) for found in sums.values()]
    known = [value for value in std if value is not None]
    values = {"layers": list(sums), "std": std, "mean_std": sum(known) / len(known) if known == std else None}
    return Outcome(values, UNITS, {"responses.png": _draw(subject.title, std)})


def _deviation(total: float, squares: float, count: float) -> float | None:
    variance = finite(squares / count - (total / count) ** 2)
    return None if variance is None else math.sqrt(max(0.0, variance))


def _layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Each 3x3 convolution's name, and the module whose output is its response; a gate is none."""
    modules = dict(network.named_modules())
    found: list[tuple[str, nn.Module]] = []
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        if not isinstance(module, nn.Conv2d) or module.kernel_size != (3, 3) or last == "gate":
            continue
        owner = modules[parent]
        if isinstance(owner, ResidualBlock) and owner.pre:
            found.append((name, module))  # its batch norm stands before it
            continue
        norm = f"bn{last.removeprefix('conv')}" if last.startswith("conv") else str(int(last) + 1)
        behind = modules.get(f"{parent}.{norm}".lstrip("."))
        found.append((name, behind if isinstance(behind, nn.BatchNorm2d) else module))
    return found


def _draw(title: str, std: list[float | None]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    figure.suptitle(f"Layer responses: {title}")
    by_depth, by_size = figure.subplots(2, 1)
    heights = [math.nan if value is None else value for value in std]
    by_depth.plot(range(1, len(std) + 1), heights, ".-")
    by_depth.set(xlabel="layer, in order", ylabel="standard deviation", ylim=(0, None))
    known = sorted((height for height in heights if not math.isnan(height)), reverse=True)
    by_size.plot(range(1, len(known) + 1), known, ".-", color="C1")
    by_size.set(xlabel="layer, by response", ylabel="standard deviation", ylim=(0, None))
    for axes in (by_depth, by_size):
        axes.grid(alpha=0.3)
    return png(figure)
