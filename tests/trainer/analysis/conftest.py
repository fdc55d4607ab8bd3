"""Small networks trained on the digits for a few seconds, and what readings are handed."""

import copy
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resforge.spec import ModelSpec
from resforge.storage import Manifest
from tests.trainer.data.test_splits import job
from trainer.analysis.subject import Subject
from trainer.data.sets import input_normalisation
from trainer.data.splits import open_split
from trainer.models import build


def fresh(model: ModelSpec) -> nn.Module:
    torch.manual_seed(1)
    return build(model.network(channels=1, classes=10, image_size=8))


def subject_of(*, steps: int = 60, **fields: object) -> Subject:
    """A network of 14 layers unless told otherwise, trained for so many steps."""
    torch.set_num_threads(1)
    model = ModelSpec.model_validate({"family": "cifar", "depth": 14, "width": 8, **fields})
    images = open_split(job(), "train")
    normalisation = input_normalisation(images, "pixel")
    network = fresh(model)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(images), (64,), generator=order).numpy()
        pixels = normalisation.normalise(torch.from_numpy(images.test_images(chosen)))
        F.cross_entropy(network(pixels), torch.from_numpy(images.labels[chosen])).backward()
        optimizer.step()
        optimizer.zero_grad()
    manifest = Manifest(
        job="job-aaaaaaaaaaaa", attempt=1, step=60, epoch=2, offset=0, created_at=datetime.now(UTC), workers=1,
        model=model, channels=1, classes=10, image_size=8, dataset="digits", dataset_format="digits", parts=(),
    )  # fmt: skip
    return Subject(
        network=network.eval(), model=model, manifest=manifest, images=open_split(job(), "test", limit=120),
        normalise=normalisation.normalise, initial=partial(fresh, model), device=torch.device("cpu"),
    )  # fmt: skip


@pytest.fixture(scope="session")
def residual() -> Subject:
    return subject_of(shortcut="A")


@pytest.fixture(scope="session")
def plain() -> Subject:
    return subject_of(shortcut="none")


@pytest.fixture
def diverged(residual: Subject) -> Subject:
    network = copy.deepcopy(residual.network)
    with torch.no_grad():
        next(network.parameters()).view(-1)[3] = float("nan")
    return replace(residual, network=network)
