"""Weight travel: how far each layer's weights have moved from initialisation, beside the distance that an identity
block would need (He et al. 2015, section 1, asks whether solvers find identities).

Travel is the 2-norm of w - w0 of a convolution's weights, also divided by the norm of w0. For a block that keeps its
shape, "identity" is the least distance that its parameters would have to go: in a residual block the last batch norm's
weight from where it began to 0; in a plain block each kernel to a Dirac kernel, its batch norm kept at weight 1. There
is none where the shortcut is weighed or a projection, nor in a plain bottleneck, which narrows. Networks without blocks
have their layers' travel alone.

Units: those of the weights. Pitfalls: batch normalisation makes a layer's function independent of its weights' scale,
so a distance is no measure of a change of function; weight decay alone moves weights towards zero.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from resforge.spec.readings import TravelReading
from trainer.analysis.common import must_be_finite, png
from trainer.analysis.subject import Outcome, Progress, Spread, Subject
from trainer.models import ResNet
from trainer.models.residual import Bottleneck, Repeated, ResidualBlock

UNITS = {
    "layers": "names of the convolutions",
    "travel": "2-norm of the weights less the initial ones",
    "relative": "the same, divided by the 2-norm of the initial weights",
    "blocks": "names of the blocks that keep their shape",
    "block_travel": "2-norm of the block's convolutions' and batch norms' parameters less the initial ones",
    "identity": "2-norm from the initial parameters to those of an identity block; null where there is none",
}


@torch.no_grad()
def read(reading: TravelReading, subject: Subject, progress: Progress, spread: Spread) -> Outcome:
    must_be_finite(subject.network)
    now = {name: tensor.cpu().double() for name, tensor in subject.network.state_dict().items()}
    before = {name: tensor.cpu().double() for name, tensor in subject.initial().state_dict().items()}
    layers = [name for name, tensor in now.items() if tensor.dim() == 4]
    travel = [float((now[name] - before[name]).norm()) for name in layers]
    relative = [gone / float(before[name].norm()) for gone, name in zip(travel, layers, strict=True)]
    kept = [
        (name, block)
        for name, block in (subject.network.blocks() if isinstance(subject.network, ResNet) else ())
        if not block.changes_shape and not isinstance(block, Repeated)
    ]
    moved: list[float] = []
    needed: list[float | None] = []
    for name, block in kept:
        own = [f"{name}.{parameter}" for parameter, _ in block.named_parameters()]
        moved.append(_norm([now[key] - before[key] for key in own]))
        convs = [key for key in own if key.removeprefix(f"{name}.").startswith("conv")]
        if not _can_be_an_identity(block):
            needed.append(None)
        elif block.plain:
            needed.append(_norm([before[key] - _dirac(before[key]) for key in convs]))
        else:
            needed.append(_norm([before[f"{name}.bn{len(convs)}.weight"]]))
    progress(1, 1)
    values = {
        "layers": [name.removesuffix(".weight") for name in layers],
        "travel": travel,
        "relative": relative,
        "blocks": [name for name, _ in kept],
        "block_travel": moved,
        "identity": needed,
    }
    return Outcome(values, UNITS, {"travel.png": _draw(subject.title, values)})


def _can_be_an_identity(block: ResidualBlock) -> bool:
    """Whether there are weights with which a block that keeps its shape gives what it is given."""
    if block.plain:
        return not isinstance(block, Bottleneck)
    return isinstance(block.downsample, nn.Identity) and block.gated == "none" and block.shortcut_scale == 1


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.cat([tensor.flatten() for tensor in tensors]).norm())


def _dirac(kernel: Tensor) -> Tensor:
    return torch.nn.init.dirac_(torch.empty_like(kernel))


def _draw(title: str, values: dict[str, list[Any]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(f"Weight travel: {title}")
    layers, blocks = figure.subplots(1, 2)
    layers.plot(range(1, len(values["relative"]) + 1), values["relative"], ".-")
    layers.set(xlabel="convolution, in order", ylabel="distance / initial norm", ylim=(0, None))
    places = range(1, len(values["blocks"]) + 1)
    blocks.plot(places, values["block_travel"], ".-", label="gone")
    identity = [math.nan if distance is None else distance for distance in values["identity"]]
    blocks.plot(places, identity, ".--", label="to an identity")
    blocks.set(xlabel="block that keeps its shape", ylabel="distance", ylim=(0, None))
    blocks.legend()
    for axes in (layers, blocks):
        axes.grid(alpha=0.3)
    return png(figure)
