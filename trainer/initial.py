"""The network as it is before its first step: random weights drawn by the seed, or those of a trained one."""

import torch
from torch import nn

from resforge.networks import Network
from resforge.s3 import ObjectStore
from resforge.spec import TrainSpec
from resforge.storage import JobDocument
from trainer.errors import SourceUnavailable
from trainer.models import build
from trainer.models.grow import grow
from trainer.sources import Source, open_source


def described(job: JobDocument) -> Network:
    """The network that a training job asks for, for its data set's images."""
    assert isinstance(job.spec, TrainSpec)
    data = job.dataset
    return job.spec.model.network(
        channels=data.channels, classes=data.classes, image_size=job.spec.data.image_size(data.image_size)
    )


def initial_network(job: JobDocument, store: ObjectStore) -> nn.Module:
    """Build the network of a training job as it is before the first step, on the CPU, in training mode.

    The same job gives the same weights to the last bit. Draws from torch's global random state, which it seeds.

    Raises:
        SourceUnavailable: the checkpoint to begin with is absent or damaged, or does not fit.
        StorageError: object storage does not answer, or refuses.
    """
    assert isinstance(job.spec, TrainSpec)
    torch.manual_seed(job.spec.training.seed)
    network = build(described(job))
    init = job.spec.init
    if init is not None:
        source = open_source(store, job.project, init.checkpoint)
        _take(network, source, init.take, described(job))
    return network


def freeze_backbone(network: nn.Module, head: str) -> None:
    """Let the layer `head` alone be trained: nothing else has a gradient, and batch norm's statistics stay."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(f"{head}."))


def _take(network: nn.Module, source: Source, take: str, wanted: Network) -> None:
    manifest, weights = source.manifest, source.network.state_dict()
    try:
        if take == "grow":
            before = manifest.model.network(
                channels=manifest.channels, classes=manifest.classes, image_size=wanted.image_size
            )
            weights = grow(weights, before, wanted)
        elif take == "backbone":
            head = f"{wanted.head}."
            weights |= {name: value for name, value in network.state_dict().items() if name.startswith(head)}
        network.load_state_dict(weights)
    except (ValueError, RuntimeError) as error:
        raise SourceUnavailable(f"{manifest.model.name} of job {manifest.job} can't be taken: {error}") from error
