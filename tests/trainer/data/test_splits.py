"""Which images a job's splits hold."""

import numpy as np
import pytest

from resforge.jobs import DatasetInfo
from resforge.spec import TrainSpec
from resforge.storage import JobDocument
from trainer.data.image_set import ArraySet
from trainer.data.splits import open_split
from trainer.errors import InvalidData

DIGITS = DatasetInfo(name="digits", format="digits", channels=1, classes=10, image_size=8)


def job(**data: object) -> JobDocument:
    spec = TrainSpec.model_validate(
        {
            "model": {"family": "cifar", "depth": 8},
            "data": {"dataset": "digits", **data},
            "training": {"global_batch": 64, "epochs": 1, "seed": 3},
        }
    )
    return JobDocument(job="job", project="demo", spec=spec, dataset=DIGITS)


def arrays(document: JobDocument, split: str, limit: int | None = None) -> ArraySet:
    images = open_split(document, split, limit=limit)
    assert isinstance(images, ArraySet)
    return images


def test_what_is_held_back_is_not_trained_on() -> None:
    document = job(validation=200)
    train, back, whole = (arrays(item, split) for item, split in (
        (document, "train"), (document, "validation"), (job(), "train")
    ))  # fmt: skip
    assert (len(train), len(back), len(whole)) == (1237, 200, 1437)
    rows = [images.images.reshape(len(images), -1) for images in (train, back, whole)]
    together = np.concatenate(rows[:2])
    assert np.array_equal(together[np.lexsort(together.T)], rows[2][np.lexsort(rows[2].T)])
    assert np.array_equal(arrays(document, "validation").images, back.images)
    assert len(arrays(document, "test")) == 360


def test_the_limit_of_training_comes_after_what_is_held_back() -> None:
    assert len(arrays(job(validation=200, train_limit=100), "train")) == 100
    assert len(arrays(job(validation=200, train_limit=100), "validation")) == 200
    assert len(arrays(job(), "test", limit=50)) == 50
    assert len(arrays(job(), "test", limit=5000)) == 360


def test_downscaling_averages() -> None:
    small, whole = arrays(job(downscale=2), "test"), arrays(job(), "test")
    assert (small.images.shape, small.info.image_size) == ((360, 4, 4, 1), 4)
    expected = np.rint(whole.images[7, 2:4, 4:6, 0].astype(float).mean())
    assert small.images[7, 1, 2, 0] == expected


def test_refusals() -> None:
    with pytest.raises(InvalidData, match="held no images back"):
        open_split(job(), "validation")
    with pytest.raises(InvalidData, match="holds 1437 training images back, and there are 1437"):
        open_split(job(validation=1437), "train")
    with pytest.raises(InvalidData, match="can't be downscaled by 3"):
        open_split(job(downscale=3), "test")
