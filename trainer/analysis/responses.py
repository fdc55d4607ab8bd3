"""Layer responses: the standard deviation of each 3x3 layer's output, after batch normalisation and before the
nonlinearity or the addition, in evaluation mode (He et al. 2015, section 4.2, figure 7).

Units: those of the activations. Residual networks respond less than plain ones, deeper ones less still.
Pitfalls: over a bottleneck only the 3x3 layers count, as in the paper; the deviation is over images, places and
channels together, so a layer whose channels differ in mean responds more.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

from resforge.spec.readings import ResponsesReading
from trainer.analysis.common import batches, blocks_of, png
from trainer.analysis.subject import Outcome, Progress, Spread, Subject

UNITS = {
    "layers": "names of the 3x3 layers in the order of the forward pass",
    "std": "standard deviation of the layer's response, in units of the activations",
    "mean_std": "mean of std over the layers",
}


@torch.inference_mode()
def read(reading: ResponsesReading, subject: Subject, progress: Progress, spread: Spread) -> Outcome:
    network = subject.network
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
    std = [math.sqrt(max(0.0, squares / count - (total / count) ** 2)) for total, squares, count in sums.values()]
    values = {"layers": list(sums), "std": std, "mean_std": sum(std) / len(std)}
    return Outcome(values, UNITS, {"responses.png": _draw(subject.title, std)})


def _layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Each 3x3 convolution's name, with the batch norm behind it; the stem too where it is 3x3."""
    found: list[tuple[str, nn.Module]] = []
    blocks = blocks_of(network)
    if network.conv1.kernel_size == (3, 3):
        found.append(("conv1", network.bn1))
    for name, block in blocks:
        for number in (1, 2, 3):
            conv = getattr(block, f"conv{number}", None)
            if conv is not None and conv.kernel_size == (3, 3):
                found.append((f"{name}.conv{number}", getattr(block, f"bn{number}")))
    return found


def _draw(title: str, std: list[float]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    figure.suptitle(f"Layer responses: {title}")
    by_depth, by_size = figure.subplots(2, 1)
    by_depth.plot(range(1, len(std) + 1), std, ".-")
    by_depth.set(xlabel="layer, in order", ylabel="standard deviation", ylim=(0, None))
    by_size.plot(range(1, len(std) + 1), sorted(std, reverse=True), ".-", color="C1")
    by_size.set(xlabel="layer, by response", ylabel="standard deviation", ylim=(0, None))
    for axes in (by_depth, by_size):
        axes.grid(alpha=0.3)
    return png(figure)
