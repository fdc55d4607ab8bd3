"""The recipes: complete, valid, with the errors that were published; and how a document is laid over one."""

from typing import Any

import pytest
from pydantic import ValidationError

from resforge.networks import IMAGENET_BLOCKS
from resforge.recipes import Recipe, UnknownRecipe, all_recipes, expand, get
from resforge.spec import TrainSpec
from tests.resforge.published import ERRORS

RECIPES = list(all_recipes().values())
# What the recipes' data sets hold: channels, classes, side.
IMAGES = {"digits": (1, 10, 8), "fashion-mnist": (1, 10, 28), "cifar10": (3, 10, 32), "imagenet": (3, 1000, 224)}


def by_name(recipe: Recipe) -> str:
    return recipe.name


@pytest.mark.parametrize("recipe", RECIPES, ids=by_name)
def test_a_recipe_is_a_complete_valid_job(recipe: Recipe) -> None:
    assert TrainSpec.model_validate(recipe.spec.model_dump(mode="json")) == recipe.spec
    assert recipe.spec.recipe == recipe.name == next(name for name, same in all_recipes().items() if same is recipe)
    channels, classes, size = IMAGES[recipe.spec.data.dataset]
    network = recipe.spec.model.network(channels=channels, classes=classes, image_size=size)
    assert network.depth == int(recipe.name.split("-")[-2 if recipe.name[-1].isalpha() else -1])
    assert recipe.name.startswith(recipe.spec.data.dataset)


@pytest.mark.parametrize("recipe", RECIPES, ids=by_name)
def test_plain_recipes_have_no_shortcut(recipe: Recipe) -> None:
    assert ("/plain-" in recipe.name) == (recipe.spec.model.shortcut == "none")


def test_published_errors_are_the_papers() -> None:
    published = {recipe.name: recipe.published for recipe in RECIPES if recipe.published}
    assert {name: value.error for name, value in published.items()} == ERRORS
    assert all("He et al. 2015, table" in value.source for value in published.values())


def test_every_network_of_the_papers_tables_has_a_recipe() -> None:
    names = set(all_recipes())
    assert {f"imagenet/resnet-{depth}" for depth in IMAGENET_BLOCKS} <= names
    assert {f"cifar10/{kind}-{depth}" for kind in ("plain", "resnet") for depth in (20, 32, 44, 56)} <= names
    assert {"digits/resnet-20", "digits/plain-20", "fashion-mnist/resnet-20"} <= names


def test_the_papers_cifar_protocol() -> None:
    spec = get("cifar10/resnet-56").spec
    assert (spec.training.global_batch, spec.training.steps) == (128, 64_000)
    assert [fraction * 64_000 for fraction in spec.optim.schedule.milestones] == [32_000, 48_000]
    assert (spec.optim.lr, spec.optim.momentum, spec.optim.weight_decay) == (0.1, 0.9, 1e-4)
    assert (spec.data.augment.pad, spec.data.augment.flip, spec.data.mean) == (4, True, "pixel")
    deep = get("cifar10/resnet-110").spec.optim.schedule
    assert (deep.warmup_steps, deep.warmup_lr) == (400, 0.01)


def test_the_papers_imagenet_protocol() -> None:
    spec = get("imagenet/resnet-50").spec
    assert (spec.training.global_batch, spec.training.epochs) == (256, 120)
    assert (spec.data.augment.scale, spec.data.augment.flip) == ((256, 480), True)


# expand


def expanded(**document: Any) -> TrainSpec:
    return TrainSpec.model_validate(expand(document))


def test_a_recipe_alone_is_the_recipe() -> None:
    for recipe in RECIPES:
        assert expanded(recipe=recipe.name) == recipe.spec


def test_a_document_without_a_recipe_is_left_as_it_is() -> None:
    for document in ({"a": 1}, {}, {"recipe": None}, {"recipe": 5}):
        assert expand(document) is document


def test_given_fields_are_laid_over_the_recipes() -> None:
    spec = expanded(recipe="cifar10/resnet-20", optim={"lr": 0.05, "schedule": {"gamma": 0.2}}, labels={"team": "a"})
    base = get("cifar10/resnet-20").spec
    assert (spec.optim.lr, spec.optim.schedule.gamma) == (0.05, 0.2)
    assert (spec.optim.momentum, spec.optim.schedule.milestones) == (
        base.optim.momentum,
        base.optim.schedule.milestones,
    )
    assert spec.labels == {"team": "a"}
    assert (spec.model, spec.data, spec.training) == (base.model, base.data, base.training)


def test_lists_are_replaced_whole() -> None:
    spec = expanded(recipe="cifar10/resnet-20", optim={"schedule": {"milestones": [0.9]}})
    assert spec.optim.schedule.milestones == (0.9,)


@pytest.mark.parametrize(
    ("recipe", "given", "gone"), [("digits/resnet-20", "steps", "epochs"), ("cifar10/resnet-20", "epochs", "steps")]
)
def test_one_length_drops_the_other(recipe: str, given: str, gone: str) -> None:
    training = expanded(recipe=recipe, training={given: 7}).training
    assert getattr(training, given) == 7
    assert getattr(training, gone) is None


def test_both_lengths_are_still_refused() -> None:
    with pytest.raises(ValidationError, match="exactly one of epochs and steps"):
        expanded(recipe="digits/resnet-20", training={"epochs": 1, "steps": 2})


def test_another_family_drops_the_recipes_model() -> None:
    spec = expanded(recipe="cifar10/plain-20", model={"family": "imagenet", "depth": 18})
    assert (spec.model.shortcut, spec.model.width) == ("B", 64)
    with pytest.raises(ValidationError, match="depth"):
        expanded(recipe="cifar10/plain-20", model={"family": "cifar"})


def test_another_depth_keeps_the_rest_of_the_model() -> None:
    assert expanded(recipe="cifar10/plain-20", model={"depth": 32}).model.shortcut == "none"


def test_what_takes_the_place_of_a_mapping_is_refused_as_it_stands() -> None:
    for part in ("model", "training", "optim"):
        with pytest.raises(ValidationError, match=part):
            expanded(recipe="digits/resnet-20", **{part: 5})


def test_expanding_changes_neither_the_document_nor_the_recipe() -> None:
    document = {"recipe": "digits/resnet-20", "optim": {"lr": 0.5}}
    before = get("digits/resnet-20").spec.model_dump()
    expand(document)
    assert document == {"recipe": "digits/resnet-20", "optim": {"lr": 0.5}}
    assert get("digits/resnet-20").spec.model_dump() == before


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digits/resnet20", "there is no recipe 'digits/resnet20'; did you mean digits/resnet-20"),
        ("cifar/resnet-56", "did you mean cifar10/resnet-56"),
        ("zzz", "there is no recipe 'zzz'; `resforge recipes` lists them all"),
    ],
)
def test_an_unknown_recipe_names_the_nearest(name: str, hint: str) -> None:
    for look_up in (get, lambda name: expand({"recipe": name})):
        with pytest.raises(UnknownRecipe) as caught:
            look_up(name)
        assert hint in str(caught.value)
        assert str(caught.value).endswith("`resforge recipes` lists them all")
