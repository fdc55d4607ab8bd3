"""Batch norm's smoothing: how the loss varies along its gradient with batch normalisation and without, from the same
weights (Santurkar et al. 2018, section 3).

"With" uses each batch's statistics, as in training. "Without" is the same network with batch normalisation frozen to
the statistics that the batch has at the start, a constant scale and shift: there both are the same function with one
loss, and only the answer of the normalisation to a step differs. Along each one's own normalised gradient the loss is
measured, and how far the gradient turns.

Units: nats; steps are lengths in weight space; cosines from -1 to 1. Pitfalls: a network that was trained with batch
normalisation was not trained to do without, so this tells of the landscape at one place, not of a training without it.
Dropout and stochastic depth are as in evaluation on both sides, so that batch norm alone makes a difference. Of a tied
network's shared batch norms no statistics can be frozen, since each pass has its own.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resforge.spec.readings import SmoothingReading
from trainer.analysis.common import by_batch_statistics, finite, first_batch, must_be_finite, png
from trainer.analysis.subject import Outcome, Progress, Spread, Subject
from trainer.errors import Unreadable
from trainer.models.residual import Repeated

# Of the loss at the start: what rounding may make of two ways to compute one function.
TOLERANCE = 0.01

UNITS = {
    "steps": "lengths of the step along the gradient, in weight space",
    "with": "with batch norm: losses by step (loss), their least and most over batches (low, high), and the cosine "
    "of the gradient with the first one (cosine)",
    "without": "the same with batch norm frozen to the statistics of the start",
    "range": "most less least of the mean loss over the steps, in nats",
    "start_difference": "largest difference of the two losses before the step, in nats",
}


def read(reading: SmoothingReading, subject: Subject, progress: Progress, spread: Spread) -> Outcome:
    must_be_finite(subject.network)
    if not any(isinstance(module, nn.BatchNorm2d) for module in subject.network.modules()):
        raise Unreadable("the network has no batch normalisation, so there is no reading with and without")
    for name, module in subject.network.named_modules():
        if isinstance(module, Repeated):
            raise Unreadable(
                f"the block {name} shares its batch norms with another, each with statistics of its own in every pass, "
                "so they can't be frozen; a network that is not tied is accepted"
            )
    images, labels = first_batch(subject, reading.batch * reading.batches)
    chunks = [(images[index :: reading.batches], labels[index :: reading.batches]) for index in range(reading.batches)]
    if min(len(chunk) for _, chunk in chunks) < 2:
        raise Unreadable(
            f"{reading.batches} batches of two images or more are needed, and there are {len(labels)} images"
        )
    steps = [reading.largest_step * index / (reading.steps - 1) for index in range(reading.steps)]
    curves: dict[str, list[tuple[list[float], list[float]]]] = {"with": [], "without": []}
    for number, (batch, wanted) in enumerate(chunks, start=1):
        live = by_batch_statistics(copy.deepcopy(subject.network))
        for parameter in live.parameters():
            parameter.requires_grad_(True)
        curves["with"].append(_walk(live, batch, wanted, steps))
        frozen = copy.deepcopy(subject.network)
        for parameter in frozen.parameters():
            parameter.requires_grad_(True)
        curves["without"].append(_walk(_frozen(frozen, batch), batch, wanted, steps))
        _must_begin_alike(curves["with"][-1][0][0], curves["without"][-1][0][0])
        progress(number, len(chunks))
    found: dict[str, Any] = {name: _summary(curve) for name, curve in curves.items()}
    values = {
        "steps": steps,
        **found,
        "range": {name: _range(found[name]["loss"]) for name in curves},
        "start_difference": max(
            abs(one[0][0] - other[0][0]) for one, other in zip(curves["with"], curves["without"], strict=True)
        ),
    }
    return Outcome(values, UNITS, {"smoothing.png": _draw(subject.title, steps, found)})


def _must_begin_alike(one: float, other: float) -> None:
    """Both are one function at the start.

    Raises:
        Unreadable: their losses differ by more than rounding explains, or are not finite.
    """
    if not (math.isfinite(one) and math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=1e-6)):
        raise Unreadable(
            f"with batch norm frozen to a batch's own statistics the loss is {other:.6g} instead of {one:.6g}, so a "
            "comparison would tell nothing of batch norm; a network whose losses agree there is accepted"
        )


@torch.no_grad()
def _frozen(network: nn.Module, images: Tensor) -> nn.Module:
    """Set batch norm's running statistics to this batch's, by which evaluation mode then normalises."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]

    def note(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        norm.running_mean.copy_(x.mean((0, 2, 3)))
        norm.running_var.copy_(x.var((0, 2, 3), unbiased=False))

    network.eval()
    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    network(images)
    for handle in handles:
        handle.remove()
    return network


def _walk(network: nn.Module, images: Tensor, labels: Tensor, steps: list[float]) -> tuple[list[float], list[float]]:
    """The losses, and the cosines of the gradients with the first, at each step along the first gradient."""
    parameters = list(network.parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    losses, cosines = [], []
    first: list[Tensor] = []
    for step in steps:
        with torch.no_grad():
            for parameter, value, direction in zip(parameters, start, first or start, strict=True):
                parameter.copy_(value - step * direction if first else value)
        loss = F.cross_entropy(network(images), labels)
        gradient = torch.autograd.grad(loss, parameters)
        norm = torch.cat([part.flatten() for part in gradient]).norm().clamp_min(1e-12)
        unit = [part / norm for part in gradient]
        first = first or unit
        losses.append(float(loss.detach()))
        cosines.append(float(sum((one * other).sum() for one, other in zip(unit, first, strict=True))))
    return losses, cosines


def _summary(curve: list[tuple[list[float], list[float]]]) -> dict[str, list[float | None]]:
    losses = list(zip(*(item[0] for item in curve), strict=True))
    cosines = list(zip(*(item[1] for item in curve), strict=True))
    return {
        "loss": [finite(sum(values) / len(values)) for values in losses],
        "low": [finite(min(values)) for values in losses],
        "high": [finite(max(values)) for values in losses],
        "cosine": [finite(sum(values) / len(values)) for values in cosines],
    }


def _range(losses: list[float | None]) -> float | None:
    known = [loss for loss in losses if loss is not None]
    return max(known) - min(known) if len(known) == len(losses) else None


def _draw(title: str, steps: list[float], found: dict[str, dict[str, list[float | None]]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(f"Along the gradient, with and without batch norm: {title}")
    losses, cosines = figure.subplots(1, 2)
    for index, (name, curve) in enumerate(found.items()):
        plain = {key: [float("nan") if v is None else v for v in values] for key, values in curve.items()}
        losses.plot(steps, plain["loss"], ".-", color=f"C{index}", label=name)
        losses.fill_between(steps, plain["low"], plain["high"], color=f"C{index}", alpha=0.2, linewidth=0)
        cosines.plot(steps, plain["cosine"], ".-", color=f"C{index}", label=name)
    losses.set(xlabel="step along the gradient", ylabel="loss (nats)", yscale="log")
    cosines.set(xlabel="step along the gradient", ylabel="cosine with the first gradient", ylim=(-1.05, 1.05))
    for axes in (losses, cosines):
        axes.grid(alpha=0.3)
        axes.legend()
    return png(figure)
