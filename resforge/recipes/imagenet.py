"""ImageNet: tables 2 to 5 of He et al. 2015, table 5 of He et al. 2016, and a modern training.

The training is the paper's (section 3.4): the shorter side drawn from [256, 480], crops of 224 and flips, per-pixel
mean, colour augmentation, batches of 256, a rate of 0.1 that is divided by 10 where the error stays, 60e4 iterations.
The published errors are those of 10 crops and of several scales; a recipe for each of both evaluates what was trained.
"""

from collections.abc import Iterator

from resforge.recipes.recipe import Published, Recipe, model_of
from resforge.spec import (
    AugmentSpec,
    CheckpointSpec,
    DataSpec,
    EvalDataSpec,
    EvaluationSpec,
    ModelSpec,
    OptimSpec,
    ProtocolSpec,
    RegularisationSpec,
    ScalingSpec,
    ScheduleSpec,
    TrainingSpec,
    TrainSpec,
)

_PAPER, _IDENTITY = "He et al. 2015", "He et al. 2016, table 5"
_VIEWS = {"ten-crop": "10-crop", "multi-scale": "multi-scale"}

# Validation errors in percent, top-1 and top-5 (None where the paper gives none), by network and views.
_ROWS: dict[str, dict[str, tuple[float, float | None, str]]] = {
    "plain-18": {"ten-crop": (27.94, None, "table 2")},
    "resnet-18": {"ten-crop": (27.88, None, "table 2")},
    "plain-34": {"ten-crop": (28.54, 10.02, "table 3")},
    "resnet-34-A": {"ten-crop": (25.03, 7.76, "table 3")},
    "resnet-34": {"ten-crop": (24.52, 7.46, "table 3"), "multi-scale": (21.84, 5.71, "table 4")},
    "resnet-34-C": {"ten-crop": (24.19, 7.40, "table 3"), "multi-scale": (21.53, 5.60, "table 4")},
    "resnet-50": {"ten-crop": (22.85, 6.71, "table 3"), "multi-scale": (20.74, 5.25, "table 4")},
    "resnet-101": {"ten-crop": (21.75, 6.05, "table 3"), "multi-scale": (19.87, 4.60, "table 4")},
    "resnet-152": {"ten-crop": (21.43, 5.71, "table 3"), "multi-scale": (19.38, 4.49, "table 4")},
    "vgg-16": {"ten-crop": (28.07, 9.33, "table 3")},
}
# One crop of 320 pixels (He et al. 2016, table 5).
_AT_320 = {"resnet-152": (21.3, 5.5), "resnet-200": (21.8, 6.0), "preact-152": (21.1, 5.5), "preact-200": (20.7, 5.3)}
# One centre crop, 100 less torchvision's accuracy of its first weights (V1), which have v1.5 and its own schedule.
_TORCHVISION = {"resnet-34": 26.686, "resnet-50": 23.870, "resnet-101": 22.626, "resnet-152": 21.688, "vgg-19": 27.624}

# One centre crop, batches of 8192 on 256 GPUs (Goyal et al. 2017, tables 1 and 2).
_LARGE_BATCH = {50: 23.74, 101: 22.36}

_NETWORKS = {
    "plain-18": model_of("imagenet", 18, shortcut="none"),
    "resnet-18": model_of("imagenet", 18, shortcut="A"),
    "plain-34": model_of("imagenet", 34, shortcut="none"),
    "resnet-34-A": model_of("imagenet", 34, shortcut="A"),
    "resnet-34": model_of("imagenet", 34),
    "resnet-34-C": model_of("imagenet", 34, shortcut="C"),
    **{f"resnet-{depth}": model_of("imagenet", depth) for depth in (50, 101, 152, 200)},
    **{f"preact-{depth}": model_of("imagenet", depth, order="pre") for depth in (152, 200)},
}
_VGG = model_of("vgg", 19)
_EIGHT_GPUS = ScalingSpec(workers=8, gpus_per_worker=1, cpus_per_worker=8)
_OFTEN = CheckpointSpec(every_epochs=1, every_steps=1000)


def recipes() -> Iterator[Recipe]:
    """Every row: the trainings, then the evaluations of what they leave."""
    for name, model in _NETWORKS.items():
        yield _paper(name, model)
    for depth in (16, 19):
        yield _vgg(f"vgg-{depth}", model_of("vgg", depth))
    yield _modern("resnet-50-modern", model_of("imagenet", 50, variant="v1.5"))
    for depth in _LARGE_BATCH:
        yield _large_batch(f"resnet-{depth}-64-gpus", model_of("imagenet", depth, variant="v1.5"), depth)
    for name, rows in _ROWS.items():
        for views in rows:
            yield _evaluation(name, views)
    for name in _AT_320:
        full = f"imagenet/{name}/crop-320"
        title = f"evaluation of a checkpoint of imagenet/{name} by one crop of 320 pixels (He et al. 2016)"
        yield Recipe(name=full, title=title, spec=_evaluating(full, "centre", crop=320), published=tuple(_at_320(name)))
    yield _ensemble()


def _published(name: str) -> Iterator[Published]:
    for views in _ROWS.get(name, ()):
        yield from _row(name, views)
    yield from _at_320(name)
    if name == "vgg-19":  # the best of its authors' single networks
        for rank, error in ((1, 24.4), (5, 7.1)):
            yield Published(
                error=error, metric=f"ImageNet top-{rank}, dense, several scales", source=f"{_PAPER}, table 4"
            )
    if name in _TORCHVISION:
        note = "by torchvision's own schedule" + (", v1.5" if _NETWORKS.get(name, _VGG).bottleneck else "")
        yield Published(error=_TORCHVISION[name], metric="ImageNet top-1, centre crop", source="torchvision", note=note)


def _at_320(name: str) -> Iterator[Published]:
    for rank, error in zip((1, 5), _AT_320.get(name, ()), strict=False):
        yield Published(error=error, metric=f"ImageNet top-{rank}, one crop of 320 pixels", source=_IDENTITY)


def _row(name: str, views: str) -> Iterator[Published]:
    *errors, table = _ROWS[name][views]
    for rank, error in zip((1, 5), errors, strict=True):
        if isinstance(error, float):
            yield Published(error=error, metric=f"ImageNet top-{rank}, {_VIEWS[views]}", source=f"{_PAPER}, {table}")


def _paper(name: str, model: ModelSpec) -> Recipe:
    full = f"imagenet/{name}"
    return Recipe(
        name=full,
        title=f"{name} on ImageNet, the paper's schedule (section 3.4)",
        spec=TrainSpec(
            recipe=full,
            model=model,
            data=DataSpec(dataset="imagenet", augment=AugmentSpec(flip=True, scale=(256, 480), colour=0.1)),
            optim=OptimSpec(schedule=ScheduleSpec(kind="plateau")),
            training=TrainingSpec(global_batch=256, steps=600_000, log_every_steps=50),
            scaling=_EIGHT_GPUS,
            checkpoint=_OFTEN,
        ),
        published=tuple(_published(name)),
    )


def _vgg(name: str, model: ModelSpec) -> Recipe:
    """Simonyan and Zisserman 2015, sections 3.1 and 3.2, with He et al.'s initialisation."""
    full = f"imagenet/{name}"
    return Recipe(
        name=full,
        title=f"{name} on ImageNet, the paper's baseline, by its own authors' schedule",
        spec=TrainSpec(
            recipe=full,
            model=model,
            data=DataSpec(
                dataset="imagenet", augment=AugmentSpec(flip=True, scale=(256, 512), colour=0.1), mean="channel"
            ),
            optim=OptimSpec(lr=0.01, weight_decay=5e-4, schedule=ScheduleSpec(kind="plateau")),
            training=TrainingSpec(global_batch=256, epochs=74, log_every_steps=50),
            scaling=_EIGHT_GPUS,
            checkpoint=_OFTEN,
        ),
        published=tuple(_published(name)),
    )


def _modern(name: str, model: ModelSpec) -> Recipe:
    full = f"imagenet/{name}"
    return Recipe(
        name=full,
        title="resnet-50 (v1.5) on ImageNet by today's means: cosine, label smoothing, mixup and cutmix, averaged "
        "weights, growing images",
        spec=TrainSpec(
            recipe=full,
            model=model,
            data=DataSpec(dataset="imagenet", augment=AugmentSpec(flip=True, scale=(224, 480)), mean="channel"),
            optim=OptimSpec(
                lr=0.4,  # 0.1 for 256 images, in proportion (Goyal et al. 2017, section 2.1)
                nesterov=True,
                weight_decay=5e-5,
                decay_norm_and_bias=False,
                schedule=ScheduleSpec(kind="cosine", warmup_steps=6250),
            ),
            regularisation=RegularisationSpec(label_smoothing=0.1, mixup=0.2, cutmix=1.0, ema=0.9999),
            training=TrainingSpec(global_batch=1024, epochs=100, log_every_steps=50, progressive_from=128),
            scaling=_EIGHT_GPUS,
            checkpoint=_OFTEN,
        ),
    )


def _large_batch(name: str, model: ModelSpec, depth: int) -> Recipe:
    """Goyal et al. 2017, section 5.1: 8192 images a step, the rate of 256 scaled to them, a warm-up of five epochs."""
    full = f"imagenet/{name}"
    published = Published(
        error=_LARGE_BATCH[depth],
        metric="ImageNet top-1, centre crop",
        source="Goyal et al. 2017",
        note="on 256 GPUs, with each block's last batch norm scaled by 0 at first",
    )
    return Recipe(
        name=full,
        title=f"resnet-{depth} (v1.5) on ImageNet over 64 GPUs: the rate scaled to 8192 images a step, with a warm-up",
        spec=TrainSpec(
            recipe=full,
            model=model,
            data=DataSpec(dataset="imagenet", augment=AugmentSpec(flip=True, area=(0.08, 1.0)), mean="channel"),
            optim=OptimSpec(
                lr=0.1,
                lr_batch=256,
                nesterov=True,
                schedule=ScheduleSpec(milestones=(30 / 90, 60 / 90, 80 / 90), warmup_epochs=5),
            ),
            training=TrainingSpec(global_batch=8192, epochs=90, log_every_steps=10),
            scaling=ScalingSpec(workers=64, gpus_per_worker=1, cpus_per_worker=8),
            checkpoint=_OFTEN,
        ),
        published=(published,),
    )


def _evaluation(name: str, views: str) -> Recipe:
    full = f"imagenet/{name}/{views}"
    return Recipe(
        name=full,
        title=f"{_VIEWS[views]} evaluation of a checkpoint of imagenet/{name}",
        spec=_evaluating(full, views),
        published=tuple(_row(name, views)),
    )


def _ensemble() -> Recipe:
    full = "imagenet/ensemble"
    return Recipe(
        name=full,
        title="multi-scale evaluation of several networks' mean, six of different depths in the paper",
        spec=_evaluating(full, "multi-scale"),
        published=(Published(error=3.57, metric="ImageNet top-5, ensemble, test set", source=f"{_PAPER}, table 5"),),
    )


def _evaluating(recipe: str, views: str, crop: int | None = None) -> EvaluationSpec:
    return EvaluationSpec(
        recipe=recipe,
        data=EvalDataSpec(),
        protocol=ProtocolSpec.model_validate({"views": views, "crop": crop}),
        scaling=ScalingSpec(gpus_per_worker=1, cpus_per_worker=8),
    )
