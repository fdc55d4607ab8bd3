"""Evaluation protocols held against the same views put together by hand."""

import copy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from resforge.jobs import DatasetInfo
from resforge.spec import ModelSpec, ProtocolSpec
from resforge.storage import Manifest
from tests.trainer.analysis.conftest import subject_of
from tests.trainer.data.test_splits import job
from trainer.analysis.subject import Subject
from trainer.data.image_set import ImageSet
from trainer.data.loader import eval_loader
from trainer.data.photographs import FolderSet
from trainer.data.sets import open_dataset
from trainer.data.splits import open_split
from trainer.data.transforms import Normalisation
from trainer.errors import InvalidData
from trainer.evaluate import evaluate
from trainer.protocols import evaluate_sources, recompute_batch_norm
from trainer.sources import Trained

CPU = torch.device("cpu")

pytestmark = pytest.mark.stack  # some seconds of training, and of resizing images by the hundred


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_of(shortcut="A")


def source_of(subject: Subject, network: nn.Module | None = None) -> Trained:
    normalisation: Normalisation = subject.normalise.__self__  # type: ignore[attr-defined]
    return Trained(network=network or subject.network, manifest=subject.manifest, normalisation=normalisation)


def run(sources: list[Trained], images: ImageSet, **protocol: Any) -> Any:
    return evaluate_sources(sources, images, ProtocolSpec.model_validate(protocol), device=CPU, batch=50)


def test_one_view_of_one_network_is_a_plain_evaluation(subject: Subject) -> None:
    found = run([source_of(subject)], subject.images)
    plain = evaluate(subject.network, eval_loader(subject.images, batch=64), subject.normalise, CPU)
    assert (found.totals.correct1, found.totals.correct5, found.totals.images) == (
        plain.correct1, plain.correct5, 120,
    )  # fmt: skip
    assert found.totals.loss_sum == pytest.approx(plain.loss_sum, rel=1e-5)
    assert found.confusion.sum() == 120
    assert np.trace(found.confusion) == plain.correct1
    assert found.values()["top1_error"] == 1 - plain.correct1 / 120
    assert found.pictures()["confusion.png"].startswith(b"\x89PNG")


def test_a_crop_of_another_size(subject: Subject) -> None:
    seen: list[torch.Size] = []
    network = copy.deepcopy(subject.network)
    network.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[2:]))
    for views in ("centre", "ten-crop"):
        run([source_of(subject, network)], subject.images, views=views, crop=12)
    assert set(seen) == {torch.Size([12, 12])}
    own = run([source_of(subject)], subject.images, views="centre", crop=8).totals
    assert own == run([source_of(subject)], subject.images).totals


def test_an_ensemble_averages_probabilities(subject: Subject) -> None:
    torch.manual_seed(9)
    other = source_of(subject, subject.initial().eval())
    found = run([source_of(subject), other], subject.images)
    pixels = subject.normalise(torch.from_numpy(subject.images.test_images(np.arange(120))))
    labels = torch.from_numpy(subject.images.labels)
    with torch.no_grad():
        mean = (subject.network(pixels).double().softmax(1) + other.network(pixels).double().softmax(1)) / 2
    assert found.totals.correct1 == int((mean.argmax(1) == labels).sum())
    assert found.totals.loss_sum == pytest.approx(float(-mean[torch.arange(120), labels].log().sum()), rel=1e-4)
    assert len(found.values()["members"]) == 2
    alone = run([source_of(subject)] * 2, subject.images)
    assert alone.totals.correct1 == run([source_of(subject)], subject.images).totals.correct1


def test_members_that_do_not_agree_are_refused(subject: Subject) -> None:
    other = replace(source_of(subject), manifest=subject.manifest.model_copy(update={"classes": 7}))
    with pytest.raises(InvalidData, match="7 classes, 1 channels, 8 pixels; 10 classes"):
        run([source_of(subject), other], subject.images)


@pytest.fixture
def photographs(tmp_path: Path) -> FolderSet:
    """A folder of photographs of two classes and of different sizes."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for index, (width, height) in enumerate([(40, 30), (30, 50), (33, 33), (64, 40)]):
            folder = tmp_path / split / "ab"[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((width, height)).save(folder / f"{index}.jpg")
    info = DatasetInfo(name="p", format="folder", location=str(tmp_path), channels=3, classes=2, image_size=28)
    images = open_dataset(info, "test")
    assert isinstance(images, FolderSet)
    return images


def photographed() -> tuple[Trained, list[Tensor]]:
    """A network that answers by the mean colours of what it sees, and remembers the shapes."""
    torch.manual_seed(0)
    seen: list[Tensor] = []

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return self.fc(x.mean((2, 3)) * 20)

        def __deepcopy__(self, memo: object) -> "Network":
            return self

    model = ModelSpec.model_validate({"family": "cifar", "depth": 8})
    manifest = Manifest(
        job="j", attempt=1, step=1, epoch=0, offset=0, created_at=datetime.now(UTC), workers=1, model=model,
        channels=3, classes=2, image_size=28, dataset="p", dataset_format="folder", parts=(),
    )  # fmt: skip
    mean = torch.linspace(0, 200, 28 * 28 * 3).reshape(28, 28, 3)
    normalisation = Normalisation(mean, torch.full((3,), 60.0))
    return Trained(network=Network().eval(), manifest=manifest, normalisation=normalisation), seen


def test_ten_crops_are_corners_and_centre_and_their_mirror_images(photographs: FolderSet) -> None:
    source, seen = photographed()
    found = run([source], photographs, views="ten-crop")
    assert len(seen) == 10
    assert all(view.shape == (4, 3, 28, 28) for view in seen)
    whole = photographs.image(0)
    whole = whole.resize((round(whole.width * 32 / whole.height), 32), Image.Resampling.BILINEAR)
    for view, left, top in (
        (0, 0, 0),
        (2, whole.width - 28, 0),
        (6, whole.width - 28, 4),
        (8, (whole.width - 28) // 2, 2),
    ):
        crop = np.asarray(whole.crop((left, top, left + 28, top + 28)))
        expected = source.normalisation.normalise(torch.from_numpy(crop.copy())[None])[0]
        torch.testing.assert_close(seen[view][0], expected)
        mirrored = source.normalisation.normalise(torch.from_numpy(crop[:, ::-1].copy())[None])[0]
        torch.testing.assert_close(seen[view + 1][0], mirrored)
    with torch.no_grad():
        mean = torch.stack([source.network(view).double().softmax(1) for view in list(seen)]).mean(0)
    assert found.totals.correct1 == int((mean.argmax(1).numpy() == photographs.labels).sum())


def test_multi_scale_shows_the_whole_image_at_each_scale(photographs: FolderSet) -> None:
    source, seen = photographed()
    run([source], photographs, views="multi-scale", scales=[28, 48])
    assert len(seen) == 2 * 2 * 4  # scales, mirrored, images of differing shapes one by one
    assert {tuple(view.shape[2:]) for view in seen if view.shape[2:].numel()} >= {(28, 37), (48, 64)}
    assert min(min(view.shape[2:]) for view in seen) == 28


def test_default_scales_are_the_papers_in_proportion(photographs: FolderSet, subject: Subject) -> None:
    """224, 256, 384, 480 and 640 are for inputs of 224 pixels; these networks' have 28 and 8."""
    source, seen = photographed()
    run([source], photographs, views="multi-scale")
    assert {min(view.shape[2:]) for view in seen} == {28, 32, 48, 60, 80}
    shapes: list[torch.Size] = []
    network = copy.deepcopy(subject.network)
    network.register_forward_pre_hook(lambda _module, inputs: shapes.append(inputs[0].shape[2:]))
    found = run([source_of(subject, network)], subject.images, views="multi-scale")
    assert set(shapes) == {torch.Size([side, side]) for side in (8, 9, 14, 17, 23)}
    assert found.totals.images == 120


def test_batch_norm_takes_the_statistics_of_the_images(subject: Subject) -> None:
    before = {name: tensor.clone() for name, tensor in subject.network.state_dict().items()}
    train = open_split(job(), "train", limit=100)
    from copy import deepcopy

    network = deepcopy(subject.network)
    recompute_batch_norm(network, train, subject.normalise, CPU, batch=50)
    chunks = [subject.normalise(torch.from_numpy(train.test_images(np.arange(s, s + 50)))) for s in (0, 50)]
    with torch.no_grad():
        means = [network.conv1(chunk).mean((0, 2, 3)) for chunk in chunks]  # type: ignore[operator]
    torch.testing.assert_close(network.bn1.running_mean, (means[0] + means[1]) / 2)  # type: ignore[union-attr]
    found = evaluate_sources(
        [source_of(subject)], subject.images, ProtocolSpec(recompute_batch_norm=100), device=CPU, train_images=train
    )
    assert found.totals.images == 120
    after = subject.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
