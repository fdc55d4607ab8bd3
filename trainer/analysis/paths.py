"""Path lengths and their share of the gradient: a residual network of n blocks read as 2^n paths, each of which goes
through F in some blocks and through the shortcut in the others (Veit et al. 2016, section 5).

There are C(n, k) paths of k blocks. Of each length some are drawn; of each drawn one, the gradient of the mean loss
flows back along this path alone, and its 2-norm at the first block's input is taken. A length's share of the gradient
is the number of its paths times their mean norm, of the sum over all lengths.

Units: nats by unit of activation; lengths in blocks (a basic block has two layers). Evaluation mode. Pitfalls: norms
add up where vectors need not, so shares are of magnitudes and not of the gradient's direction; relus and batch norm are
those of the whole network's forward pass; a projection on a shortcut counts as no block.
"""

import math
import random

import torch
from torch import Tensor
from torch.nn import functional as F

from resforge.spec.readings import PathsReading
from trainer.analysis.common import blocks_of, finite, first_batch, must_be_finite, png
from trainer.analysis.subject import Outcome, Progress, Spread, Subject
from trainer.errors import Unreadable
from trainer.models.residual import ResNet

UNITS = {
    "lengths": "numbers of blocks whose F a path goes through",
    "paths": "share of all paths that have this length, 0 to 1",
    "norm": "mean 2-norm of the gradient along one path of this length, at the first block's input",
    "gradient": "share of the gradient that comes along paths of this length, 0 to 1; null where a norm is not finite",
    "most_of_the_gradient": "the 5th and the 95th percentile of length by share of the gradient, in blocks",
    "most_of_the_paths": "the same by number of paths",
}


def read(reading: PathsReading, subject: Subject, progress: Progress, spread: Spread) -> Outcome:
    must_be_finite(subject.network)
    blocks = blocks_of(subject.network)
    if any(block.plain for _, block in blocks):
        raise Unreadable(
            "a network with plain blocks has no shortcut in them, and so no paths to choose from; "
            "a residual network is accepted"
        )
    assert isinstance(subject.network, ResNet)
    images, labels = first_batch(subject, reading.batch)
    count = len(blocks)
    draw = random.Random(subject.seed)
    norms = []
    for length in range(count + 1):
        draws = 1 if length in (0, count) else reading.draws  # there is one path of either length
        found = [
            float(gradient_along(subject.network, set(draw.sample(range(count), length)), images, labels).norm())
            for _ in range(draws)
        ]
        norms.append(sum(found) / len(found))
        progress(length + 1, count + 1)
    paths = [math.comb(count, length) / 2**count for length in range(count + 1)]
    weighted = [share * norm for share, norm in zip(paths, norms, strict=True)]
    total = sum(weighted)
    known = math.isfinite(total) and total > 0
    gradient = [weight / total if known else None for weight in weighted]
    values = {
        "lengths": list(range(count + 1)),
        "paths": paths,
        "norm": [finite(norm) for norm in norms],
        "gradient": gradient,
        "most_of_the_gradient": _middle(weighted) if known else None,
        "most_of_the_paths": _middle(paths),
    }
    return Outcome(values, UNITS, {"paths.png": _draw(subject.title, values)})


def gradient_along(network: ResNet, through: set[int], images: Tensor, labels: Tensor) -> Tensor:
    """The mean loss's gradient at the first block's input, along the path through F in the blocks of these numbers."""
    with torch.no_grad():
        start = network.stem(images)
    x = start = start.requires_grad_()
    for number, (_, block) in enumerate(network.blocks()):
        by_f, by_s = (x, x.detach()) if number in through else (x.detach(), x)
        x = block.join(x.detach(), block.residual(by_f), block.skip(by_s))
    [gradient] = torch.autograd.grad(F.cross_entropy(network.head(x), labels), start)
    return gradient


def _middle(weights: list[float]) -> list[int]:
    """Where 5 and 95 % of the weight have passed."""
    total, passed = sum(weights), 0.0
    found = []
    bounds = [0.05, 0.95]
    for length, weight in enumerate(weights):
        passed += weight
        while bounds and passed >= bounds[0] * total:
            found.append(length)
            bounds.pop(0)
    return found


def _draw(title: str, values: dict[str, list[float]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    figure.suptitle(f"Paths: {title}")
    lengths = values["lengths"]
    paths, norm, gradient = figure.subplots(1, 3)
    paths.bar(lengths, values["paths"], color="C0")
    paths.set(xlabel="path length (blocks)", ylabel="share of all paths")
    norm.plot(lengths, [height or math.nan for height in values["norm"]], ".-", color="C1")
    norm.set(xlabel="path length (blocks)", ylabel="gradient along one path", yscale="log")
    gradient.bar(lengths, [height or 0 for height in values["gradient"]], color="C2")
    gradient.set(xlabel="path length (blocks)", ylabel="share of the gradient")
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    return png(figure)
