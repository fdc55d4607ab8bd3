"""Gradient norms by block, and the part that comes through the shortcut.

Of a block that computes F(x) + s(x), with g the gradient of the mean loss at the sum, the gradient at x is J_F' g +
J_s' g; factors and gates count with what they weigh, and what comes through a gate's own input with neither. Reported
are the 2-norms of the whole and of both parts, and the norm of the gradient of the block's own weights; at the
checkpoint, and for the network as it was initialised (He et al. 2016, section 2).

Units: nats by unit of the activation or weight. Batch normalisation uses the batch's statistics, as in training;
dropout and stochastic depth are as in evaluation, so that no draw decides.
Pitfalls: the norms of the parts do not add up to the whole's, since the parts are vectors; norms of gradients at
activations grow as the mean over a smaller batch is taken, so compare readings of one batch size only.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resforge.spec.readings import GradientsReading
from trainer.analysis.common import blocks_of, by_batch_statistics, finite, first_batch, must_be_finite, png
from trainer.analysis.subject import Outcome, Progress, Spread, Subject

UNITS = {
    "blocks": "names of the blocks in the order of the forward pass",
    "trained": "at the checkpoint: for each block the 2-norms of the gradients at its input (input), of the parts that "
    "come through F (residual) and the shortcut (shortcut; null in a plain block), and of its weights "
    "(weights; null where they are another block's)",
    "initial": "the same for the network as it was before training",
    "first_to_last": "weights' norm of the first block divided by the last one's, at the checkpoint and initially",
}


def read(reading: GradientsReading, subject: Subject, progress: Progress, spread: Spread) -> Outcome:
    must_be_finite(subject.network)
    names = [name for name, _ in blocks_of(subject.network)]
    images, labels = first_batch(subject, reading.batch)
    found = {}
    for index, (when, network) in enumerate(
        (("trained", copy.deepcopy(subject.network)), ("initial", subject.initial().to(subject.device)))
    ):
        found[when] = _norms(by_batch_statistics(network), images, labels)
        progress(index + 1, 2)
    values = {
        "blocks": names,
        **found,
        "first_to_last": {when: _ratio(rows) for when, rows in found.items()},
    }
    return Outcome(values, UNITS, {"gradients.png": _draw(subject.title, found)})


def _norms(network: nn.Module, images: Tensor, labels: Tensor) -> list[dict[str, float | None]]:
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    seen: list[tuple[Tensor, Tensor, Tensor | None]] = []
    x = network.stem(images)
    for _, block in blocks_of(network):
        # Two copies of the input, so that autograd keeps the two ways apart.
        through_f, through_s = x.clone(), x.clone()
        for copied in (x, through_f, through_s):
            copied.retain_grad()
        skipped = block.skip(through_s)
        seen.append((x, through_f, None if skipped is None else through_s))
        x = block.join(x, block.residual(through_f), skipped)
    loss = F.cross_entropy(network.head(x), labels)
    loss.backward()
    rows = []
    for (whole, by_f, by_s), (_, block) in zip(seen, blocks_of(network), strict=True):
        weights = [p.grad.norm() for p in block.parameters() if p.grad is not None]
        rows.append(
            {
                "input": _norm(whole.grad),
                "residual": _norm(by_f.grad),
                "shortcut": None if by_s is None else _norm(by_s.grad),
                # A repeated block has no weights of its own.
                "weights": finite(float(torch.stack(weights).norm())) if weights else None,
            }
        )
    return rows


def _norm(gradient: Tensor | None) -> float | None:
    return None if gradient is None else finite(float(gradient.norm()))


def _ratio(rows: list[dict[str, float | None]]) -> float | None:
    known = [row["weights"] for row in rows if row["weights"] is not None]
    return finite(known[0] / known[-1]) if known and known[-1] else None


def _draw(title: str, found: dict[str, list[dict[str, float | None]]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(f"Gradients by block: {title}")
    for axes, (when, rows) in zip(figure.subplots(1, 2, sharey=True), found.items(), strict=True):
        steps = range(1, len(rows) + 1)
        for name, style in (("input", "k-"), ("residual", "C0.--"), ("shortcut", "C1.-"), ("weights", "C2:")):
            heights = [row[name] if row[name] else float("nan") for row in rows]
            if not all(math.isnan(height) for height in heights):
                axes.plot(steps, heights, style, label={"input": "at the input", "residual": "through F",
                          "shortcut": "through the shortcut", "weights": "of the weights"}[name])  # fmt: skip
        axes.set(xlabel="block", yscale="log", title=when)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[0].set_ylabel("2-norm")
    return png(figure)
