"""What follows from a training job's spec, reckoned before anything runs."""

from pydantic import Field

from resforge.jobs import DatasetInfo, Resource
from resforge.spec import TrainSpec

# Below so many images a worker batch norm's statistics were measured to cost accuracy (Wu and He 2018, figure 1).
FEW_IMAGES = 16


class Plan(Resource):
    """What a training job would do. Lengths in epochs need the number of training images, and are null without."""

    model: str
    dataset: str
    workers: int
    global_batch: int = Field(description="Images in one step, over all workers.")
    images_per_worker: int = Field(description="Images in one step of one worker, whose batch norm sees no others.")
    learning_rate: float = Field(description="The rate behind the warm-up, before any cut.")
    learning_rate_scaled: float | None = Field(
        description="What optim.lr was multiplied by for the global batch; null where it is used as it is."
    )
    warmup_steps: int | None = Field(
        description="Steps of the warm-up, at most where the error may end it; null where the error alone does."
    )
    train_images: int | None = Field(description="Images of an epoch, before what does not fill a batch is left out.")
    steps_per_epoch: int | None
    total_steps: int | None
    epochs: float | None
    parameters: int
    operations: float | None = Field(
        description="Floating-point operations of the whole training: two for a multiply-add, three passes (forward, "
        "and backward for inputs and weights), images of full size."
    )
    notes: tuple[str, ...] = Field(default=(), description="What its author may not have meant.")


def plan(spec: TrainSpec, dataset: DatasetInfo) -> Plan:
    """Reckon what a job would do on a data set that it fits."""
    training, workers = spec.training, spec.scaling.workers
    batch, each = training.global_batch, training.global_batch // workers
    images = _images(spec, dataset)
    per_epoch = None if images is None else max(1, images // batch)
    total = training.steps if per_epoch is None else training.total_steps(per_epoch)
    optim = spec.optim.resolved(batch, per_epoch or 1)
    by_error = optim.schedule.warmup_until_error is not None and not optim.schedule.warmup_steps
    known = spec.optim.schedule.warmup_epochs is None or per_epoch is not None
    warmup = optim.schedule.warmup_steps if known and not by_error else None
    size = spec.data.image_size(dataset.image_size)
    network = spec.model.network(channels=dataset.channels, classes=dataset.classes, image_size=size)
    notes = []
    if workers > 1 and each < FEW_IMAGES:
        notes.append(
            f"batch norm's statistics are those of a worker's own {each} image{'s' if each > 1 else ''} in each step, "
            f"and cost accuracy below {FEW_IMAGES} (Wu and He 2018); take fewer workers or a larger global batch"
        )
    if spec.optim.lr_batch is not None and batch > spec.optim.lr_batch and warmup == 0:
        notes.append(
            f"the rate is {batch / spec.optim.lr_batch:g} times that of {spec.optim.lr_batch} images from the first "
            "step on; scaled rates are known to need a warm-up (Goyal et al. 2017, section 2.2), such as "
            "optim.schedule.warmup_epochs: 5"
        )
    if total is not None and warmup is not None and warmup >= total:
        notes.append(f"the warm-up of {warmup:,} steps does not end before the run of {total:,} does")
    return Plan(
        model=spec.model.name,
        dataset=dataset.name,
        workers=workers,
        global_batch=batch,
        images_per_worker=each,
        learning_rate=optim.lr,
        learning_rate_scaled=None if spec.optim.lr_batch is None else batch / spec.optim.lr_batch,
        warmup_steps=warmup,
        train_images=images,
        steps_per_epoch=per_epoch,
        total_steps=total,
        epochs=None if per_epoch is None or total is None else total / per_epoch,
        parameters=network.parameters,
        operations=None if total is None else 6.0 * network.macs * batch * total,
        notes=tuple(notes),
    )


def _images(spec: TrainSpec, dataset: DatasetInfo) -> int | None:
    if dataset.train_images is None:
        return None
    left = dataset.train_images - spec.data.validation
    return left if spec.data.train_limit is None else min(left, spec.data.train_limit)
