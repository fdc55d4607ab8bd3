"""What several readings need: batches, losses, figures."""

import io
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.analysis.subject import Subject
from trainer.data.loader import eval_loader
from trainer.errors import Unreadable
from trainer.models.residual import ResidualBlock, ResNet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 256


def batches(subject: Subject, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images (N, C, H, W) and labels (N,), on the subject's device."""
    for images, labels in eval_loader(subject.images, batch=size):
        yield subject.normalise(images.to(subject.device)), labels.to(subject.device)


def first_batch(subject: Subject, size: int) -> tuple[Tensor, Tensor]:
    """Normalised images spread evenly over the subject's, and their labels.

    Raises:
        Unreadable: there are fewer than two.
    """
    count = min(size, len(subject.images))
    if count < 2:
        raise Unreadable(f"batch statistics need two images or more, and there are {count}; raise data.limit")
    indices = torch.arange(count) * len(subject.images) // count
    images = torch.from_numpy(subject.images.test_images(indices.numpy())).to(subject.device)
    labels = torch.from_numpy(subject.images.labels[indices.numpy()]).to(subject.device)
    return subject.normalise(images), labels


@torch.inference_mode()
def measure(network: nn.Module, subject: Subject) -> tuple[float, float]:
    """Mean cross-entropy in nats, and the top-1 error from 0 to 1, over the subject's images."""
    loss, wrong, count = 0.0, 0, 0
    for images, labels in batches(subject):
        logits = network(images).double()
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        wrong += int((logits.argmax(1) != labels).sum())
        count += len(labels)
    return loss / count, wrong / count


def blocks_of(network: nn.Module) -> list[tuple[str, ResidualBlock]]:
    """The network's blocks.

    Raises:
        Unreadable: it has none.
    """
    if not isinstance(network, ResNet):
        raise Unreadable("the network has no blocks; a network of the cifar or the imagenet family is accepted")
    return network.blocks()


def by_batch_statistics(network: nn.Module) -> nn.Module:
    """Have batch norm normalise by each batch's own statistics, as in training; all else is in evaluation mode.

    So neither dropout nor stochastic depth draws anything: F(x) of a block that survives with probability p counts p
    times, which is its mean.
    """
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    return network


def must_be_finite(network: nn.Module) -> None:
    """Refuse a network that has diverged.

    Raises:
        Unreadable: a weight is NaN or infinite.
    """
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise Unreadable(f"the network has diverged: {name} holds NaN or infinity; take an earlier checkpoint")


def finite(value: float) -> float | None:
    """The number, or None where it is none that JSON holds."""
    return value if math.isfinite(value) else None


def png(figure: "Figure") -> bytes:
    """The figure as a PNG file, the same bytes each time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
