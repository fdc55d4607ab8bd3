"""Named, complete job specifications: the paper's experiments, each with the error published for it, and small ones
that finish on a laptop.

`get(name)` gives a recipe; `expand(document)` turns a document that names a recipe and overrides some of its fields
into a whole one.
"""

import difflib
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from resforge.networks import IMAGENET_BLOCKS
from resforge.spec import (
    AugmentSpec,
    CheckpointSpec,
    DataSpec,
    ModelSpec,
    OptimSpec,
    ScalingSpec,
    ScheduleSpec,
    TrainingSpec,
    TrainSpec,
)


class Published(BaseModel):
    """An error rate in percent and where it was published."""

    model_config = ConfigDict(frozen=True)

    error: float = Field(description="Test or validation error, in percent.")
    metric: str
    source: str


class Recipe(BaseModel):
    """A complete job under a name."""

    model_config = ConfigDict(frozen=True)

    name: str
    title: str
    spec: TrainSpec
    published: Published | None = None


class UnknownRecipe(LookupError):
    """There is no such recipe."""

    def __init__(self, name: str) -> None:
        close = difflib.get_close_matches(name, all_recipes(), n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(close)}?" if close else ";"
        super().__init__(f"there is no recipe {name!r}{hint} `resforge recipes` lists them all")


def _model(family: str, depth: int, shortcut: str | None = None) -> ModelSpec:
    fields = {"family": family, "depth": depth}
    return ModelSpec.model_validate(fields if shortcut is None else {**fields, "shortcut": shortcut})


def _digits(name: str, model: ModelSpec) -> Recipe:
    return Recipe(
        name=name,
        title=f"{name.split('/')[1]} on scikit-learn's handwritten digits (8x8); seconds on a laptop",
        spec=TrainSpec(
            recipe=name,
            model=model,
            data=DataSpec(dataset="digits", augment=AugmentSpec(pad=1)),
            optim=OptimSpec(lr=0.1, schedule=ScheduleSpec(kind="cosine", warmup_steps=20)),
            training=TrainingSpec(global_batch=64, epochs=16, log_every_steps=5),
        ),
    )


def _fashion(name: str, model: ModelSpec) -> Recipe:
    return Recipe(
        name=name,
        title=f"{name.split('/')[1]} on Fashion-MNIST (28x28), the paper's CIFAR schedule at a quarter of its length",
        spec=TrainSpec(
            recipe=name,
            model=model,
            data=DataSpec(dataset="fashion-mnist", augment=AugmentSpec(pad=2, flip=True)),
            training=TrainingSpec(global_batch=128, steps=16_000, log_every_steps=20),
        ),
    )


# Test error in percent on CIFAR-10 (He et al. 2015, table 6); 110 layers: best of five.
_CIFAR_RESNET = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}
_CIFAR_PLAIN = (20, 32, 44, 56)


def _cifar10(depth: int, shortcut: str) -> Recipe:
    name = f"cifar10/{'plain' if shortcut == 'none' else 'resnet'}-{depth}"
    # 110 layers start at 0.01 until the training error is below 80 %, about 400 steps (section 4.2).
    schedule = ScheduleSpec(warmup_steps=400, warmup_lr=0.01) if depth >= 110 else ScheduleSpec()
    error = _CIFAR_RESNET.get(depth) if shortcut != "none" else None
    return Recipe(
        name=name,
        title=f"{name.split('/')[1]} on CIFAR-10, the paper's schedule (section 4.2)",
        spec=TrainSpec(
            recipe=name,
            model=_model("cifar", depth, shortcut),
            data=DataSpec(dataset="cifar10", augment=AugmentSpec(pad=4, flip=True)),
            optim=OptimSpec(schedule=schedule),
            training=TrainingSpec(global_batch=128, steps=64_000, log_every_steps=50),
            scaling=ScalingSpec(workers=2, gpus_per_worker=1),
        ),
        published=Published(error=error, metric="CIFAR-10 test error", source="He et al. 2015, table 6")
        if error is not None
        else None,
    )


# Top-1 validation error in percent, 10-crop (He et al. 2015, tables 2 and 3).
_IMAGENET_PLAIN = {18: 27.94, 34: 28.54}
_IMAGENET_RESNET = {
    (18, "A"): (27.88, "table 2"),
    (34, "A"): (25.03, "table 2"),
    (34, "B"): (24.52, "table 3"),
    (34, "C"): (24.19, "table 3"),
    (50, "B"): (22.85, "table 3"),
    (101, "B"): (21.75, "table 3"),
    (152, "B"): (21.43, "table 3"),
}


def _imagenet(depth: int, shortcut: str, name: str, error: float, table: str) -> Recipe:
    return Recipe(
        name=name,
        title=f"{name.split('/')[1]} on ImageNet, the paper's schedule with steps at 30, 60 and 90 of 120 epochs",
        spec=TrainSpec(
            recipe=name,
            model=_model("imagenet", depth, shortcut),
            data=DataSpec(dataset="imagenet", augment=AugmentSpec(flip=True, scale=(256, 480))),
            optim=OptimSpec(schedule=ScheduleSpec(milestones=(0.25, 0.5, 0.75))),
            training=TrainingSpec(global_batch=256, epochs=120, log_every_steps=50),
            scaling=ScalingSpec(workers=8, gpus_per_worker=1, cpus_per_worker=8),
            checkpoint=CheckpointSpec(every_epochs=1, every_steps=1000),
        ),
        published=Published(error=error, metric="ImageNet top-1, 10-crop", source=f"He et al. 2015, {table}"),
    )


@cache
def all_recipes() -> dict[str, Recipe]:
    """Every recipe by name."""
    recipes = [
        _digits("digits/resnet-20", _model("cifar", 20)),
        _digits("digits/plain-20", _model("cifar", 20, "none")),
        _fashion("fashion-mnist/resnet-20", _model("cifar", 20)),
        _fashion("fashion-mnist/plain-20", _model("cifar", 20, "none")),
        *(_cifar10(depth, "A") for depth in _CIFAR_RESNET),
        *(_cifar10(depth, "none") for depth in _CIFAR_PLAIN),
        *(_imagenet(d, "none", f"imagenet/plain-{d}", e, "table 2") for d, e in _IMAGENET_PLAIN.items()),
    ]
    for (depth, shortcut), (error, table) in _IMAGENET_RESNET.items():
        # The one that the paper goes on with carries the plain name: A up to 18 layers, B from 34.
        suffix = "" if (depth, shortcut) in {(18, "A"), *((d, "B") for d in IMAGENET_BLOCKS)} else f"-{shortcut}"
        recipes.append(_imagenet(depth, shortcut, f"imagenet/resnet-{depth}{suffix}", error, table))
    return {recipe.name: recipe for recipe in recipes}


def get(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UnknownRecipe: there is none; the message names the nearest.
    """
    try:
        return all_recipes()[name]
    except KeyError:
        raise UnknownRecipe(name) from None


def expand(document: dict[str, Any]) -> dict[str, Any]:
    """A document whose `recipe` names a recipe, laid over that recipe's fields; one without a recipe as it is.

    Mappings are merged, everything else replaces. Giving one of `training.epochs` and `training.steps` drops the
    recipe's other, and giving `model.family` drops the recipe's whole model.

    Raises:
        UnknownRecipe: the document names a recipe that does not exist.
    """
    name = document.get("recipe")
    if not isinstance(name, str):
        return document
    base = get(name).spec.model_dump(mode="json")
    training = document.get("training")
    if isinstance(training, dict) and {"epochs", "steps"} & training.keys():
        base["training"] = {k: v for k, v in base["training"].items() if k not in ("epochs", "steps")}
    model = document.get("model")
    if isinstance(model, dict) and "family" in model:
        base["model"] = {}
    return _merge(base, document)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
