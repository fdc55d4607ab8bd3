"""A two-dimensional loss landscape around a trained network, along two random directions whose filters have the norms
of the network's own filters (Li et al. 2018, section 4).

Units: the loss in nats, the error from 0 to 1; distances in units of the filters' norms. Parameters of batch norm and
biases do not move, and its statistics stay those of the checkpoint. Pitfalls: two random directions of millions see
little of a landscape; sharpness between networks compares only where both are normalised so.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from resforge.spec.readings import LandscapeReading
from trainer.analysis.common import finite, measure, must_be_finite, png
from trainer.analysis.subject import Outcome, Progress, Spread, Subject
from trainer.errors import Unreadable
from trainer.models import build

UNITS = {
    "coordinates": "along each direction, in units of the filters' norms",
    "loss": "mean cross-entropy in nats at (row: second direction, column: first); null where it is not finite",
    "error": "top-1 error there, 0 to 1",
    "centre_loss": "at the checkpoint itself, in nats",
}


def read(reading: LandscapeReading, subject: Subject, progress: Progress, spread: Spread) -> Outcome:
    must_be_finite(subject.network)
    centre = measure(subject.network, subject)[0]
    if not math.isfinite(centre):
        raise Unreadable("the loss of the network is not finite, so it has no landscape; take an earlier checkpoint")
    generator = torch.Generator().manual_seed(subject.seed)
    weights = {name: tensor.cpu() for name, tensor in subject.network.state_dict().items()}
    parameters = {name for name, _ in subject.network.named_parameters()}
    directions = [_direction(weights, parameters, generator) for _ in range(2)]
    half = reading.points // 2
    coordinates = [reading.span * (index - half) / half for index in range(reading.points)]
    # Workers rebuild the network on the device that they have, so that only plain data travel to them.
    shown = replace(subject, network=nn.Identity(), initial=nn.Identity).to(torch.device("cpu"))
    row = partial(_row, shown, weights, directions, coordinates, subject.device)
    loss: list[list[float | None]] = []
    error: list[list[float]] = []
    for number, (losses, errors) in enumerate(spread(row, coordinates), start=1):
        loss.append(losses)
        error.append(errors)
        progress(number, reading.points)
    values = {"coordinates": coordinates, "loss": loss, "error": error, "centre_loss": centre}
    return Outcome(values, UNITS, {"landscape.png": _draw(subject.title, coordinates, loss)})


def _direction(weights: dict[str, Tensor], parameters: set[str], generator: torch.Generator) -> dict[str, Tensor]:
    """A random direction, each of its filters scaled to the norm of the network's."""
    direction = {}
    for name, tensor in weights.items():
        if name not in parameters or tensor.dim() < 2:  # batch norm and biases
            continue
        drawn = torch.randn(tensor.shape, generator=generator)
        scale = tensor.flatten(1).norm(dim=1) / drawn.flatten(1).norm(dim=1).clamp_min(1e-12)
        direction[name] = drawn * scale.view(-1, *[1] * (tensor.dim() - 1))
    return direction


def _row(
    subject: Subject,
    weights: dict[str, Tensor],
    directions: list[dict[str, Tensor]],
    coordinates: list[float],
    usual: torch.device,
    second: float,
    *,
    device: torch.device | None = None,
) -> tuple[list[float | None], list[float]]:
    """One row of the grid: the losses and errors at every first coordinate.

    Args:
        usual: where to compute unless `device` says otherwise.
    """
    subject = subject.to(device or usual)
    network: Any = _rebuilt(subject)
    losses: list[float | None] = []
    errors = []
    for first in coordinates:
        moved = {
            name: tensor + first * directions[0][name] + second * directions[1][name]
            if name in directions[0]
            else tensor
            for name, tensor in weights.items()
        }
        network.load_state_dict(moved)
        loss, error = measure(network, subject)
        losses.append(finite(loss))
        errors.append(error)
    return losses, errors


def _rebuilt(subject: Subject) -> nn.Module:
    manifest = subject.manifest
    network = build(
        manifest.model.network(channels=manifest.channels, classes=manifest.classes, image_size=manifest.image_size)
    )
    return network.to(subject.device).eval()


def _draw(title: str, coordinates: list[float], loss: list[list[float | None]]) -> bytes:
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    grid = np.ma.masked_invalid(np.array([[np.nan if v is None else v for v in row] for row in loss], dtype=float))
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    figure.suptitle(f"Loss landscape: {title}")
    plane, cuts = figure.subplots(1, 2)
    low, high = max(float(grid.min()), 1e-6), float(grid.max())
    if high > low * 1.001:
        # Colours by the logarithm, as the levels are, or all but the rim is of one colour.
        shades: dict[str, Any] = {"levels": np.geomspace(low, high, 20), "norm": LogNorm(low, high), "extend": "both"}
    else:
        shades = {"levels": 8}
    drawn = plane.contourf(coordinates, coordinates, grid, cmap="viridis", **shades)
    plane.contour(coordinates, coordinates, grid, levels=shades["levels"], colors="white", linewidths=0.4)
    plane.plot(0, 0, "r+")
    plane.set(xlabel="first direction", ylabel="second direction", aspect="equal")
    figure.colorbar(drawn, ax=plane, label="loss (nats)", format="%.2g")
    middle = len(coordinates) // 2
    cuts.plot(coordinates, grid[middle], label="along the first")
    cuts.plot(coordinates, grid[:, middle], label="along the second")
    cuts.set(xlabel="distance", ylabel="loss (nats)")
    cuts.grid(alpha=0.3)
    cuts.legend()
    return png(figure)
