"""Recipes that end in seconds on a laptop or in minutes on a GPU; nothing was published for them."""

from collections.abc import Iterator

from resforge.recipes.recipe import Recipe, model_of
from resforge.spec import AugmentSpec, DataSpec, ModelSpec, OptimSpec, ScheduleSpec, TrainingSpec, TrainSpec


def recipes() -> Iterator[Recipe]:
    """Digits and Fashion-MNIST."""
    for kind, shortcut in (("resnet", "A"), ("plain", "none")):
        yield _digits(f"digits/{kind}-20", model_of("cifar", 20, shortcut=shortcut))
    for kind, shortcut in (("resnet", "A"), ("plain", "none")):
        yield _fashion(f"fashion-mnist/{kind}-20", model_of("cifar", 20, shortcut=shortcut))


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
