"""Which images a job's splits hold: what its spec asks for, of the data set that it names."""

from pathlib import Path

import numpy as np

from resforge.spec import TrainSpec
from resforge.storage import JobDocument
from trainer.data.files import StoreFactory
from trainer.data.formats import Split
from trainer.data.image_set import ImageSet
from trainer.data.sampler import held_back, limited
from trainer.data.sets import open_dataset
from trainer.errors import InvalidData


def open_split(
    job: JobDocument,
    split: str,
    *,
    store_factory: StoreFactory | None = None,
    cache_dir: Path | None = None,
    cache_bytes: int | None = None,
    limit: int | None = None,
) -> ImageSet:
    """Open one split of a training job's images, downscaled as the job asks.

    Args:
        job: a training job and its data set.
        split: "train", which leaves out what is held back and is limited as the job asks; "validation", what is held
            back; or "test".
        store_factory, cache_dir, cache_bytes: as for `open_dataset`.
        limit: at most so many images, spread evenly over the split.

    Raises:
        InvalidData: the data are absent, damaged or not what the registration says, or the split is empty.
        StorageError: S3 does not answer, or refuses.
    """
    assert isinstance(job.spec, TrainSpec)
    data, seed = job.spec.data, job.spec.training.seed
    stored: Split = "test" if split == "test" else "train"
    images = open_dataset(
        job.dataset, stored, store_factory=store_factory, cache_dir=cache_dir, cache_bytes=cache_bytes
    )
    if split == "validation" and not data.validation:
        raise InvalidData("the job held no images back: its data.validation is 0")
    if split != "test" and data.validation:
        back = held_back(len(images), data.validation, seed)
        images = images.subset(back if split == "validation" else np.setdiff1d(np.arange(len(images)), back))
    if split == "train" and data.train_limit is not None:
        images = images.subset(limited(len(images), data.train_limit, seed))
    if limit is not None and limit < len(images):
        images = images.subset(np.arange(limit) * len(images) // limit)
    return images.downscaled(data.downscale) if data.downscale > 1 else images
