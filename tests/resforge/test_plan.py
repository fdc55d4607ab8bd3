"""What follows from a spec before anything runs."""

from typing import Any

import pytest

from resforge.jobs import DatasetInfo
from resforge.plan import Plan, plan
from resforge.recipes import get
from resforge.spec import TrainSpec

IMAGENET = DatasetInfo(
    name="imagenet", format="shards", channels=3, classes=1000, image_size=224, train_images=1_281_167
)


def planned(dataset: DatasetInfo = IMAGENET, **changes: dict[str, Any]) -> Plan:
    spec = get("imagenet/resnet-50-64-gpus").spec.model_dump()
    for part, fields in changes.items():
        spec[part] |= fields
    return plan(TrainSpec.model_validate(spec), dataset)


def test_a_large_batch_as_published() -> None:
    """Goyal et al. 2017: 8192 images a step at a rate of 3.2, behind a warm-up of five epochs."""
    found = planned()
    assert (found.images_per_worker, found.workers, found.steps_per_epoch) == (128, 64, 156)
    assert found.learning_rate == pytest.approx(3.2)
    assert (found.learning_rate_scaled, found.warmup_steps) == (32, 5 * 156)
    assert (found.total_steps, found.epochs) == (90 * 156, 90)
    # ResNet-50 v1.5: 4.09e9 multiply-adds an image, twice that many operations, three passes.
    assert found.operations == pytest.approx(6 * 4.09e9 * 8192 * 90 * 156, rel=0.01)
    assert found.notes == ()


def test_the_rate_and_the_warm_up_follow_the_batch() -> None:
    small = planned(training={"global_batch": 256}, scaling={"workers": 8})
    assert (small.learning_rate, small.learning_rate_scaled) == (pytest.approx(0.1), 1)
    assert (small.steps_per_epoch, small.warmup_steps) == (5004, 5 * 5004)
    fixed = planned(optim={"lr_batch": None})
    assert (fixed.learning_rate, fixed.learning_rate_scaled) == (0.1, None)


def test_few_images_on_each_worker_are_said_so() -> None:
    """256 images over 64 workers are four each."""
    found = planned(training={"global_batch": 256})
    assert found.images_per_worker == 4
    assert ["a worker's own 4 images" in note for note in found.notes] == [True]


def test_a_scaled_rate_without_a_warm_up_is_said_so() -> None:
    [note] = planned(optim={"schedule": {"kind": "cosine"}}).notes
    assert "32 times that of 256 images" in note
    assert "warmup_epochs" in note


def test_a_warm_up_that_the_error_ends_has_no_length_and_needs_no_advice() -> None:
    schedule = {"warmup_epochs": None, "warmup_lr": 0.01, "warmup_until_error": 0.8}
    found = planned(optim={"schedule": schedule})
    assert (found.warmup_steps, found.notes) == (None, ())
    bounded = planned(optim={"schedule": {**schedule, "warmup_steps": 500}})
    assert (bounded.warmup_steps, bounded.notes) == (500, ())


def test_a_least_rate_lies_below_the_scaled_one() -> None:
    schedule = {"kind": "plateau", "min_lr": 0.2, "warmup_epochs": 5}
    assert planned(optim={"schedule": schedule}).learning_rate == pytest.approx(3.2)


def test_a_warm_up_longer_than_the_run_is_said_so() -> None:
    [note] = planned(training={"epochs": None, "steps": 500}).notes
    assert note == "the warm-up of 780 steps does not end before the run of 500 does"


def test_without_the_number_of_images_lengths_are_not_known() -> None:
    found = planned(IMAGENET.model_copy(update={"train_images": None}))
    lengths = (found.train_images, found.steps_per_epoch, found.total_steps, found.epochs, found.warmup_steps)
    assert lengths == (None,) * 5
    assert (found.operations, found.learning_rate) == (None, pytest.approx(3.2))
    in_steps = planned(IMAGENET.model_copy(update={"train_images": None}), training={"epochs": None, "steps": 7})
    assert (in_steps.total_steps, in_steps.epochs) == (7, None)


def test_images_held_back_or_left_out_are_no_images_of_an_epoch() -> None:
    assert planned(data={"validation": 50_000}).train_images == 1_231_167
    assert planned(data={"validation": 50_000, "train_limit": 100_000}).train_images == 100_000
