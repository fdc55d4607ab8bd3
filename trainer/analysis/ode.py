"""The reading as an ordinary differential equation: y = x + F(x) is a step of Euler's method for x' = F(x, t), so
within a stage steps of half the size, two for each block, should lead to about the same place, and steps of double
size too (Haber and Ruthotto 2017, section 2; Chang et al. 2018, section 3).

Halved once, every block that keeps its shape is passed twice with F / 2; doubled once, of every two such neighbours the
first is passed with 2 F. No step begins another stage. Where the network is a discretisation of something smooth, the
change of the logits falls by half with each further halving.

Units: top-1 errors from 0 to 1, losses in nats; the change of the logits is a 2-norm over images and classes, relative
to that of the logits. Evaluation mode, without any training after the change. Pitfalls: batch norm keeps the statistics
of the original steps; a relu behind the addition makes a step no Euler step, if still one that can be halved.
"""

import copy

import torch
from torch import Tensor, nn

from resforge.spec.readings import OdeReading
from trainer.analysis.common import batches, blocks_of, must_be_finite, png
from trainer.analysis.subject import Outcome, Progress, Spread, Subject
from trainer.errors import Unreadable
from trainer.models.residual import ResidualBlock, ResNet

UNITS = {
    "step": "size of the steps, in the network's own",
    "blocks": "how many blocks are passed",
    "error": "top-1 error with steps of this size, 0 to 1",
    "loss": "mean cross-entropy with steps of this size, in nats",
    "logits_change": "2-norm of the logits less those of the network itself, divided by the 2-norm of the latter",
    "residual_to_input": "for each block that keeps its shape, 2-norm of F(x), with its constant factors, divided by "
    "that of x, mean over images",
}


class _Step(nn.Module):
    """A block whose F has one more factor."""

    def __init__(self, block: ResidualBlock, factor: float) -> None:
        super().__init__()
        self.block, self.factor = block, factor

    def forward(self, x: Tensor) -> Tensor:
        seen = self.block.before(x)
        return self.block.join(x, self.block.layers(seen) * self.factor, self.block.shortcut(x, seen))


@torch.inference_mode()
def read(reading: OdeReading, subject: Subject, progress: Progress, spread: Spread) -> Outcome:
    must_be_finite(subject.network)
    _must_have_steps(blocks_of(subject.network))
    assert isinstance(subject.network, ResNet)
    sizes = [2.0**power for power in range(-reading.levels, reading.levels + 1)]
    whole, labels = _logits(subject.network, subject)
    rows = []
    for number, size in enumerate(sizes, start=1):
        network = _with_steps(subject.network, size)
        logits, _ = (whole, labels) if size == 1 else _logits(network, subject)
        rows.append(
            (
                sum(len(getattr(network, stage)) for stage in network.stages),
                float((logits.argmax(1) != labels).double().mean()),
                float(nn.functional.cross_entropy(logits, labels)),
                float((logits - whole).norm() / whole.norm()),
            )
        )
        progress(number, len(sizes))
    passed, error, loss, change = (list(column) for column in zip(*rows, strict=True))
    values = {
        "step": sizes,
        "blocks": passed,
        "error": error,
        "loss": loss,
        "logits_change": change,
        "residual_to_input": _relative(subject.network, subject),
    }
    return Outcome(values, UNITS, {"ode.png": _draw(subject.title, values)})


def _must_have_steps(blocks: list[tuple[str, ResidualBlock]]) -> None:
    for name, block in blocks:
        if block.changes_shape:
            continue
        if block.plain:
            why = "has no shortcut"
        elif not isinstance(block.downsample, nn.Identity):
            why = "has a projection on its shortcut"
        else:
            why = "weighs its shortcut" if block.gated != "none" or block.shortcut_scale != 1 else ""
        if why:
            raise Unreadable(
                f"the block {name} {why}, so it is no step x + F(x); networks with identity shortcuts are accepted"
            )
    if all(block.changes_shape for _, block in blocks):
        raise Unreadable("no block keeps its shape, so there is no step to halve; a deeper network is accepted")


def _with_steps(network: ResNet, size: float) -> ResNet:
    """A copy whose steps have this size, a power of two."""
    changed = copy.deepcopy(network)
    for stage in changed.stages:
        blocks = list(getattr(changed, stage))
        first = 1 if blocks[0].changes_shape else 0
        steps: list[nn.Module] = blocks[:first]
        if size <= 1:
            times = round(1 / size)
            steps += [_Step(block, size) for block in blocks[first:] for _ in range(times)]
        else:
            group = round(size)
            rest = blocks[first:]
            # The last group may be smaller: the stage is as long in time as it was.
            steps += [_Step(rest[at], min(group, len(rest) - at)) for at in range(0, len(rest), group)]
        changed.set_submodule(stage, nn.Sequential(*steps))
    return changed


def _logits(network: nn.Module, subject: Subject) -> tuple[Tensor, Tensor]:
    found = [(network(images).double(), labels) for images, labels in batches(subject)]
    return torch.cat([logits for logits, _ in found]), torch.cat([labels for _, labels in found])


def _relative(network: ResNet, subject: Subject) -> list[float]:
    ratios: dict[str, list[Tensor]] = {name: [] for name, block in network.blocks() if not block.changes_shape}
    for images, _ in batches(subject):
        x = network.stem(images)
        for name, block in network.blocks():
            residual = block.residual(x)
            if name in ratios:
                scaled = residual * (block.residual_scale * block.survival)
                ratios[name].append(scaled.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1).clamp_min(1e-12))
            x = block.join(x, residual, block.skip(x))
    return [float(torch.cat(parts).mean()) for parts in ratios.values()]


def _draw(title: str, values: dict[str, list[float]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    figure.suptitle(f"Steps halved and doubled: {title}")
    error, change, relative = figure.subplots(1, 3)
    error.plot(values["step"], [100 * height for height in values["error"]], "o-")
    error.set(ylabel="top-1 error (%)", ylim=(0, None))
    change.plot(values["step"], values["logits_change"], "o-", color="C1")
    change.set(ylabel="relative change of the logits", ylim=(0, None))
    for axes in (error, change):
        axes.set_xscale("log", base=2)
        axes.set(xlabel="step size (1: the network's own)")
    relative.plot(range(1, len(values["residual_to_input"]) + 1), values["residual_to_input"], ".-", color="C2")
    relative.set(xlabel="block that keeps its shape", ylabel="norm of F(x) / norm of x", ylim=(0, None))
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    return png(figure)
