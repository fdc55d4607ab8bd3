"""CIFAR-10: table 6 of He et al. 2015, tables 1 and 3 of He et al. 2016, and what stands beside them.

The schedule is the paper's (section 4.2): batches of 128, a rate of 0.1 divided by 10 at 32k and 48k of 64k iterations,
per-pixel mean, 4 pixels of padding, crops and flips; from 110 layers on, 0.01 until the training error is below 80 %.
"""

from collections.abc import Iterator

from resforge.recipes.recipe import Published, Recipe, model_of
from resforge.spec import (
    AugmentSpec,
    DataSpec,
    ModelSpec,
    OptimSpec,
    RegularisationSpec,
    ScalingSpec,
    ScheduleSpec,
    TrainingSpec,
    TrainSpec,
)

METRIC = "CIFAR-10 test error"
_TABLE_6 = "He et al. 2015, table 6"
_TABLE_1, _TABLE_3 = "He et al. 2016, table 1", "He et al. 2016, table 3"

_RESNET = {20: (8.75, ""), 32: (7.51, ""), 44: (7.17, ""), 56: (6.97, ""),
           110: (6.43, "best of five; 6.61 +- 0.16"), 1202: (7.93, "")}  # fmt: skip
_PLAIN = (20, 32, 44, 56, 110)
# Without shortcuts (Li et al. 2018, table 1), by a schedule of its own.
_PLAIN_BY_LI = {20: 8.18, 56: 13.31, 110: 16.44}

# 110 layers with other shortcuts: fields, and the error; None: the training failed, with more than 20 % error.
_SHORTCUTS: tuple[tuple[str, dict[str, object], float | None], ...] = (
    ("scaling", {"shortcut": "scaling", "shortcut_scale": 0.5, "residual_scale": 0.5}, 12.35),
    ("exclusive-gating", {"shortcut": "exclusive-gating", "gate_bias": -6.0}, 8.70),
    ("shortcut-gating", {"shortcut": "shortcut-gating", "gate_bias": -6.0}, 6.91),
    ("shortcut-gating-0", {"shortcut": "shortcut-gating", "gate_bias": 0.0}, 12.86),
    ("conv1x1", {"shortcut": "conv1x1"}, 12.22),
    ("dropout", {"shortcut": "dropout", "shortcut_dropout": 0.5}, None),
)
# Post- and pre-activation by layers; with bottlenecks but for 110.
_PREACTIVATION = {110: (6.61, 6.37), 164: (5.93, 5.46), 1001: (7.61, 4.92)}


def recipes() -> Iterator[Recipe]:
    """Every row, and one modern training."""
    for depth, (error, note) in _RESNET.items():
        yield _paper(f"resnet-{depth}", model_of("cifar", depth), _published(error, _TABLE_6, note))
    for depth in _PLAIN:
        found = _published(None, "He et al. 2015, section 4.2", "more than 60 %") if depth == 110 else ()
        if depth in _PLAIN_BY_LI:
            found += _published(_PLAIN_BY_LI[depth], "Li et al. 2018, table 1", "by another schedule")
        yield _paper(f"plain-{depth}", model_of("cifar", depth, shortcut="none"), found)
    for depth, error in ((20, 7.54), (32, 8.80)):
        note = "published for networks of 19 and 32 layers of another width (Highway 1 and 2)"
        found = _published(error, _TABLE_6, note)
        yield _paper(f"highway-{depth}", model_of("cifar", depth, shortcut="highway"), found)
    yield _split("resnet-56")
    for name, fields, median in _SHORTCUTS:
        note = "more than 20 %" if median is None else "median of five"
        yield _paper(f"resnet-110-{name}", model_of("cifar", 110, **fields), _published(median, _TABLE_1, note))
    for depth, (before, after) in _PREACTIVATION.items():
        block = "basic" if depth == 110 else "bottleneck"
        if block == "bottleneck":
            model = model_of("cifar", depth, block=block)
            yield _paper(f"resnet-{depth}", model, _published(before, _TABLE_3))
        model = model_of("cifar", depth, block=block, order="pre")
        yield _paper(f"preact-{depth}", model, _published(after, _TABLE_3))
    yield _stochastic()
    yield _paper("euler-110", model_of("cifar", 110, tied=True, step=0.2), (), title="with blocks that share weights")
    yield _modern()


def _published(error: float | None, source: str, note: str = "") -> tuple[Published, ...]:
    return (Published(error=error, metric=METRIC, source=source, note=note),)


def _paper(name: str, model: ModelSpec, published: tuple[Published, ...], *, title: str = "") -> Recipe:
    """The network `name` under the paper's schedule."""
    full = f"cifar10/{name}"
    deep = model.depth >= 110
    schedule = ScheduleSpec(warmup_lr=0.01, warmup_until_error=0.8) if deep else ScheduleSpec()
    return Recipe(
        name=full,
        title=f"{name} on CIFAR-10, the paper's schedule (section 4.2)" + (f"; {title}" if title else ""),
        spec=TrainSpec(
            recipe=full,
            model=model,
            data=DataSpec(dataset="cifar10", augment=AugmentSpec(pad=4, flip=True)),
            optim=OptimSpec(schedule=schedule),
            training=TrainingSpec(global_batch=128, steps=64_000, log_every_steps=50),
            scaling=ScalingSpec(workers=2, gpus_per_worker=1),
        ),
        published=published,
    )


def _split(network: str) -> Recipe:
    """The split by which the paper chose its schedule."""
    full = f"cifar10/{network}-split"
    base = _paper(network, model_of("cifar", 56), ())
    data = base.spec.data.model_copy(update={"validation": 5000})
    return base.model_copy(
        update={
            "name": full,
            "title": f"{network} on CIFAR-10, 45,000 images to train and 5,000 to validate, by which the paper chose "
            "its schedule",
            "spec": base.spec.model_copy(update={"data": data, "recipe": full}),
        }
    )


def _stochastic() -> Recipe:
    source = "Huang et al. 2017, table 2, of Huang et al. 2016"
    recipe = _paper("resnet-110-stochastic", model_of("cifar", 110, survival=0.5), _published(5.23, source))
    # Huang et al. 2016, section 4: 500 epochs of 45,000 images, the rate divided by 10 after a half and three quarters
    # of them, Nesterov's momentum.
    assert isinstance(recipe.spec, TrainSpec)
    training = TrainingSpec(global_batch=128, epochs=500, log_every_steps=50)
    data = recipe.spec.data.model_copy(update={"validation": 5000})
    spec = recipe.spec.model_copy(update={"training": training, "optim": OptimSpec(nesterov=True), "data": data})
    return recipe.model_copy(
        update={"spec": spec, "title": "resnet-110 with stochastic depth on CIFAR-10, 500 epochs (Huang et al. 2016)"}
    )


def _modern() -> Recipe:
    full = "cifar10/resnet-56-modern"
    return Recipe(
        name=full,
        title="resnet-56 on CIFAR-10 by today's means: cosine, label smoothing, mixup and cutmix, averaged weights",
        spec=TrainSpec(
            recipe=full,
            model=model_of("cifar", 56),
            data=DataSpec(dataset="cifar10", augment=AugmentSpec(pad=4, flip=True), mean="channel"),
            optim=OptimSpec(
                weight_decay=5e-4,
                nesterov=True,
                decay_norm_and_bias=False,
                schedule=ScheduleSpec(kind="cosine", warmup_steps=1000),
            ),
            regularisation=RegularisationSpec(label_smoothing=0.1, mixup=0.2, cutmix=1.0, ema=0.999),
            training=TrainingSpec(global_batch=128, epochs=200, log_every_steps=50),
            scaling=ScalingSpec(workers=2, gpus_per_worker=1),
        ),
    )
