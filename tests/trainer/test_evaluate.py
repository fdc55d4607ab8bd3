"""Evaluation: sums that add up over ranks, and a checkpoint folder evaluated as it was when it was written."""

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from resforge.jobs import DatasetInfo
from resforge.metrics import EvalPoint
from resforge.spec import ModelSpec
from resforge.storage import INPUT, MANIFEST, TRAINER_STATE, WEIGHTS, CorruptCheckpoint, Manifest, Part
from tests.trainer.data.files import folder_files, info, write_files, write_idx
from trainer.data.loader import eval_loader
from trainer.data.sets import input_normalisation, open_dataset
from trainer.data.transforms import Normalisation
from trainer.errors import InvalidData
from trainer.evaluate import EvalTotals, evaluate, evaluate_checkpoint, load_network
from trainer.models import build
from trainer.protocols import evaluate_folders

CPU = torch.device("cpu")
MODEL = ModelSpec.model_validate({"family": "cifar", "depth": 8, "width": 4})
DIGITS = info("digits", name="digits", channels=1, classes=10)


class Fixed(nn.Module):
    """Gives the logits that its images hold: (N, 1, 1, classes) uint8 -> (N, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        assert not torch.is_grad_enabled()
        return x.flatten(1)


def as_they_are(images: Tensor) -> Tensor:
    return images.float()


def totals(logits: list[list[int]], labels: list[int], batch: int = 2) -> EvalTotals:
    images = torch.tensor(logits, dtype=torch.uint8)[:, None, None, :]
    loader = list(zip(images.split(batch), torch.tensor(labels).split(batch), strict=True))
    return evaluate(Fixed(), loader, as_they_are, CPU)


def test_sums_by_hand() -> None:
    logits = [[9, 1, 2, 3, 4, 5, 6], [9, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0, 1]]
    result = totals(logits, [0, 2, 6])
    expected = sum(
        math.log(sum(math.exp(value) for value in row)) - row[label]
        for row, label in zip(logits, [0, 2, 6], strict=True)
    )
    assert result.loss_sum == pytest.approx(expected, rel=1e-12)
    assert (result.correct1, result.images) == (2, 3)
    # 2 stands fifth in the second row: 9, 6, 5, 4, 3 are the first five.
    assert result.correct5 == 2


def test_with_few_classes_the_best_five_are_all() -> None:
    assert totals([[5, 1, 0], [5, 1, 0]], [1, 2]).correct5 == 2


def test_totals_add_up_whatever_the_batches_and_ranks() -> None:
    random = np.random.default_rng(0)
    logits = random.integers(0, 20, (30, 10)).tolist()
    labels = random.integers(0, 10, 30).tolist()
    whole = totals(logits, labels, batch=30)
    parts = [totals(logits[at : at + 7], labels[at : at + 7], batch=3) for at in range(0, 30, 7)]
    added = sum(parts, EvalTotals())
    assert (added.correct1, added.correct5, added.images) == (whole.correct1, whole.correct5, 30)
    assert added.loss_sum == pytest.approx(whole.loss_sum, rel=1e-12)
    assert EvalTotals.from_tensor(whole.tensor()) == whole


def test_a_rank_without_images_has_empty_totals() -> None:
    assert evaluate(Fixed(), [], as_they_are, CPU) == EvalTotals()
    assert EvalTotals().point(attempt=1, step=0, epoch=0).images == 0


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_in_the_mode_that_it_was_in(training: bool) -> None:
    network = Fixed().train(training)
    batch = torch.zeros(1, 1, 1, 3), torch.zeros(1, dtype=torch.int64)
    evaluate(network, [batch], as_they_are, CPU)
    assert network.modes == [False]
    assert network.training is training
    with pytest.raises(ValueError, match="batch_size"):
        evaluate(network, [(torch.zeros(2, 1, 1, 3), torch.zeros(1, dtype=torch.int64))], as_they_are, CPU)
    assert network.training is training, "also after an error"


def test_evaluation_moves_no_statistics_and_no_random_state() -> None:
    torch.manual_seed(0)
    network = build(MODEL.network(channels=3, classes=3, image_size=8))
    images = open_dataset(info("synthetic"), "test")
    normalisation = input_normalisation(images, "pixel")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(network, eval_loader(images, batch=100), normalisation.normalise, CPU)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    # Training goes on behind it: no inference tensor was left in the network.
    network(normalisation.normalise(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))).sum().backward()


def test_bf16_is_computed_in_bf16() -> None:
    seen = []

    class Spy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x.flatten(1))
            seen.append(y.dtype)
            return y

    batch = torch.zeros(2, 1, 1, 3), torch.zeros(2, dtype=torch.int64)
    for precision in ("fp32", "bf16", "auto"):
        assert evaluate(Spy(3, 3), [batch], as_they_are, CPU, precision=precision).images == 2
    assert seen == [torch.float32, torch.bfloat16, torch.float32]


def test_a_loss_that_is_not_finite_is_left_out() -> None:
    point = EvalTotals(math.nan, 1, 2, 4).point(attempt=2, step=30, epoch=3)
    assert point.loss is None
    assert (point.top1, point.top5, point.images) == (0.25, 0.5, 4)
    assert (point.attempt, point.step, point.epoch) == (2, 30, 3)


# checkpoint folders


def write_checkpoint(
    folder: Path, dataset: DatasetInfo, normalisation: Normalisation, *, evaluation: EvalPoint | None = None
) -> nn.Module:
    """A checkpoint of an untrained network as the trainer writes it, and the network."""
    torch.manual_seed(0)
    network = build(MODEL.network(channels=dataset.channels, classes=dataset.classes, image_size=dataset.image_size))
    contents = {
        WEIGHTS: save(dict(network.state_dict())),
        INPUT: save(normalisation.state()),
        TRAINER_STATE: b"not for people",
    }
    folder.mkdir()
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    manifest = Manifest(
        job="job-1",
        attempt=2,
        step=40,
        epoch=4,
        offset=0,
        created_at=datetime.now(UTC),
        workers=1,
        model=MODEL,
        channels=dataset.channels,
        classes=dataset.classes,
        image_size=dataset.image_size,
        dataset=dataset.name,
        dataset_format=dataset.format,
        evaluation=evaluation,
        parts=tuple(
            Part(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in contents.items()
        ),
    )
    (folder / MANIFEST).write_bytes(manifest.sealed().to_bytes())
    return network


@pytest.fixture
def digits_checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "checkpoint", DIGITS, input_normalisation(open_dataset(DIGITS, "train"), "pixel"))
    return tmp_path / "checkpoint"


def test_a_folder_gives_the_network_back(tmp_path: Path) -> None:
    normalisation = Normalisation(torch.rand(8, 8, 1) * 255, torch.tensor([70.0]))
    written = write_checkpoint(tmp_path / "checkpoint", DIGITS, normalisation)
    network, manifest, read = load_network(tmp_path / "checkpoint")
    assert not network.training
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in written.state_dict().items())
    assert torch.equal(read.mean, normalisation.mean)
    assert torch.equal(read.std, normalisation.std)
    assert (manifest.job, manifest.step) == ("job-1", 40)


def test_data_that_come_with_the_trainer_need_no_location(digits_checkpoint: Path) -> None:
    network, _, normalisation = load_network(digits_checkpoint)
    point = evaluate_checkpoint(digits_checkpoint)
    expected = evaluate(
        network, eval_loader(open_dataset(DIGITS, "test"), batch=256), normalisation.normalise, CPU
    ).point(attempt=2, step=40, epoch=3)
    assert point.model_copy(update={"at": expected.at}) == expected
    assert point.images == 360


def test_pulled_checkpoints_are_an_ensemble(digits_checkpoint: Path) -> None:
    one = evaluate_checkpoint(digits_checkpoint)
    told: list[tuple[int, int]] = []
    both = evaluate_folders([digits_checkpoint, digits_checkpoint], "centre", progress=lambda *done: told.append(done))
    assert (both.top1, both.top5, both.images) == (one.top1, one.top5, one.images)
    assert told[-1] == (360, 360)


@pytest.mark.parametrize("views", ["ten-crop", "multi-scale"])
def test_a_pulled_checkpoint_is_evaluated_by_its_views(views: str, digits_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "trainer", "evaluate", str(digits_checkpoint), "--views", views, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["images"] == 360
    assert "images" not in done.stderr, "progress is for terminals"


def test_as_many_synthetic_images_are_evaluated_as_before(tmp_path: Path) -> None:
    before = EvalPoint(at=datetime.now(UTC), attempt=2, step=40, epoch=4, loss=1.0, top1=0.5, top5=1.0, images=37)
    normalisation = Normalisation(torch.full((3,), 128.0), torch.full((3,), 50.0))
    write_checkpoint(tmp_path / "checkpoint", info("synthetic"), normalisation, evaluation=before)
    assert evaluate_checkpoint(tmp_path / "checkpoint").images == 37


def test_other_data_are_found_by_their_location(tmp_path: Path) -> None:
    write_idx(tmp_path / "idx")
    write_files(tmp_path / "folder", folder_files())
    for number, registered in enumerate((info("idx", channels=1), info("folder"))):
        mean, std = torch.full((2, registered.channels), 100.0)
        checkpoint = tmp_path / f"checkpoint-{number}"
        write_checkpoint(checkpoint, registered, Normalisation(mean.clone(), std.clone()))
        with pytest.raises(
            InvalidData, match=f"format is {registered.format}; say where its data lie: a folder or an s3://"
        ):
            evaluate_checkpoint(checkpoint)
        with pytest.raises(InvalidData, match="there is no folder"):
            evaluate_checkpoint(checkpoint, location=str(tmp_path / "nowhere"))
        assert evaluate_checkpoint(checkpoint, location=str(tmp_path / registered.format)).images in (6, 9)


def test_the_trainers_own_state_need_not_be_pulled(digits_checkpoint: Path) -> None:
    (digits_checkpoint / TRAINER_STATE).unlink()
    load_network(digits_checkpoint)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change_step(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "step": 41}))


def empty(path: Path) -> None:
    path.write_text("{}")


@pytest.mark.parametrize(
    ("name", "damage", "problem"),
    [
        (WEIGHTS, flip, f"{WEIGHTS} is not what was written: its SHA-256 differs"),
        (WEIGHTS, truncate, r"is not what was written: it has \d+ bytes where the manifest says \d+"),
        (WEIGHTS, Path.unlink, f"lacks {WEIGHTS}"),
        (INPUT, flip, f"{INPUT} is not what was written"),
        (INPUT, Path.unlink, f"lacks {INPUT}"),
        (TRAINER_STATE, flip, f"{TRAINER_STATE} is not what was written"),
        (MANIFEST, Path.unlink, f"has no {MANIFEST}; expected a folder that `resforge pull` filled"),
        (MANIFEST, change_step, "manifest's bytes have changed"),
        (MANIFEST, empty, "manifest can't be read"),
    ],
)
def test_a_damaged_folder_is_noticed(
    digits_checkpoint: Path, name: str, damage: Callable[[Path], Any], problem: str
) -> None:
    damage(digits_checkpoint / name)
    with pytest.raises(CorruptCheckpoint, match=problem):
        load_network(digits_checkpoint)
    with pytest.raises(CorruptCheckpoint, match=problem):
        evaluate_checkpoint(digits_checkpoint)
