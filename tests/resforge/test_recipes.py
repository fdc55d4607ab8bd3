"""The recipes: complete, valid, with the errors that were published; and how a document is laid over one."""

from typing import Any

import pytest
from pydantic import ValidationError

from resforge.networks import IMAGENET_BLOCKS
from resforge.recipes import Recipe, UnknownRecipe, all_recipes, expand, get
from resforge.spec import EvaluateSpec, TrainSpec
from tests.resforge.published import ERRORS, IMAGENET_ERRORS, TORCHVISION

RECIPES = list(all_recipes().values())
TRAININGS = [recipe for recipe in RECIPES if isinstance(recipe.spec, TrainSpec)]
EVALUATIONS = [recipe for recipe in RECIPES if not isinstance(recipe.spec, TrainSpec)]
# What the recipes' data sets hold: channels, classes, side.
IMAGES = {"digits": (1, 10, 8), "fashion-mnist": (1, 10, 28), "cifar10": (3, 10, 32), "imagenet": (3, 1000, 224)}


def by_name(recipe: Recipe) -> str:
    return recipe.name


def training(name: str) -> TrainSpec:
    spec = get(name).spec
    assert isinstance(spec, TrainSpec)
    return spec


@pytest.mark.parametrize("recipe", TRAININGS, ids=by_name)
def test_a_training_is_a_complete_valid_job(recipe: Recipe) -> None:
    assert isinstance(recipe.spec, TrainSpec)
    assert TrainSpec.model_validate(recipe.spec.model_dump(mode="json")) == recipe.spec
    assert recipe.spec.recipe == recipe.name == next(name for name, same in all_recipes().items() if same is recipe)
    channels, classes, size = IMAGES[recipe.spec.data.dataset]
    network = recipe.spec.model.network(channels=channels, classes=classes, image_size=size)
    assert network.depth == int(recipe.name.split("-")[1] if "fashion" not in recipe.name else 20)
    assert recipe.name.startswith(recipe.spec.data.dataset)
    assert recipe.needs == ()


@pytest.mark.parametrize("recipe", TRAININGS, ids=by_name)
def test_plain_recipes_have_no_shortcut(recipe: Recipe) -> None:
    assert isinstance(recipe.spec, TrainSpec)
    assert recipe.name.partition("/")[2].startswith(("plain-", "vgg-")) == (recipe.spec.model.shortcut == "none")


@pytest.mark.parametrize("recipe", EVALUATIONS, ids=by_name)
def test_an_evaluation_is_complete_with_checkpoints(recipe: Recipe) -> None:
    assert recipe.needs == ("checkpoints",)
    with pytest.raises(ValidationError, match="checkpoints"):
        EvaluateSpec.model_validate(expand({"recipe": recipe.name}))
    checkpoint = {"job": "job-aaaaaaaaaaaa", "which": "best"}
    spec = EvaluateSpec.model_validate(expand({"recipe": recipe.name, "checkpoints": [checkpoint]}))
    assert spec.protocol == recipe.spec.protocol  # type: ignore[union-attr]
    kind = recipe.name.rpartition("/")[2]
    told = {"ensemble": ("multi-scale", None), "crop-320": ("centre", 320)}.get(kind, (kind, None))
    assert (spec.protocol.views, spec.protocol.crop) == told


def test_published_errors_are_the_papers() -> None:
    cifar = {
        recipe.name: tuple(item.error for item in recipe.published if item.error is not None)
        for recipe in RECIPES
        if recipe.name.startswith("cifar10/")
    }
    assert {name: errors for name, errors in cifar.items() if errors} == ERRORS


def test_published_imagenet_errors_are_the_papers() -> None:
    for network, rows in IMAGENET_ERRORS.items():
        trained = [item.error for item in get(f"imagenet/{network}").published]
        assert trained[: sum(map(len, rows.values()))] == [error for row in rows.values() for error in row]
        for views, errors in rows.items():
            assert tuple(item.error for item in get(f"imagenet/{network}/{views}").published) == errors
    assert {recipe.name for recipe in EVALUATIONS} == {
        "imagenet/ensemble",
        *(f"imagenet/{network}/crop-320" for network in ("resnet-152", "resnet-200", "preact-152", "preact-200")),
        *(f"imagenet/{network}/{views}" for network, rows in IMAGENET_ERRORS.items() for views in rows),
    }
    assert [item.error for item in get("imagenet/ensemble").published] == [3.57]


@pytest.mark.parametrize(("network", "accuracy"), TORCHVISION.items())
def test_published_centre_crop_errors_are_torchvisions(network: str, accuracy: float) -> None:
    [found] = [item for item in get(f"imagenet/{network}").published if item.source == "torchvision"]
    assert found.error == pytest.approx(100 - accuracy)


def test_what_failed_when_published_is_said_so() -> None:
    assert str(get("cifar10/plain-110").published[0]) == "more than 60 %"
    assert str(get("cifar10/resnet-110-dropout").published[0]) == "more than 20 %"
    assert "best of five; 6.61 +- 0.16" in get("cifar10/resnet-110").published[0].note


def test_every_network_of_the_papers_tables_has_a_recipe() -> None:
    names = set(all_recipes())
    assert {f"imagenet/resnet-{depth}" for depth in IMAGENET_BLOCKS} <= names
    assert {f"cifar10/{kind}-{depth}" for kind in ("plain", "resnet") for depth in (20, 32, 44, 56)} <= names
    assert {"digits/resnet-20", "digits/plain-20", "fashion-mnist/resnet-20"} <= names


def test_the_papers_cifar_protocol() -> None:
    spec = training("cifar10/resnet-56")
    assert (spec.training.global_batch, spec.training.steps) == (128, 64_000)
    assert [fraction * 64_000 for fraction in spec.optim.schedule.milestones] == [32_000, 48_000]
    assert (spec.optim.lr, spec.optim.momentum, spec.optim.weight_decay) == (0.1, 0.9, 1e-4)
    assert (spec.data.augment.pad, spec.data.augment.flip, spec.data.mean) == (4, True, "pixel")
    deep = training("cifar10/resnet-110").optim.schedule
    assert (deep.warmup_lr, deep.warmup_until_error, deep.kind) == (0.01, 0.8, "step")
    split = training("cifar10/resnet-56-split")
    assert split.data.validation == 5000
    assert split.model_copy(update={"data": spec.data, "recipe": spec.recipe}) == spec


def test_the_papers_imagenet_protocol() -> None:
    spec = training("imagenet/resnet-50")
    assert (spec.training.global_batch, spec.training.steps) == (256, 600_000)
    augment = spec.data.augment
    assert (augment.scale, augment.flip, augment.colour, spec.data.mean) == ((256, 480), True, 0.1, "pixel")
    assert (spec.optim.lr, spec.optim.schedule.kind, spec.optim.schedule.gamma) == (0.1, "plateau", 0.1)


def test_modern_recipes_use_what_came_later() -> None:
    for name in ("imagenet/resnet-50-modern", "cifar10/resnet-56-modern"):
        spec = training(name)
        extra = spec.regularisation
        assert spec.optim.schedule.kind == "cosine"
        assert not spec.optim.decay_norm_and_bias
        assert extra.label_smoothing and extra.mixup and extra.cutmix and extra.ema  # noqa: PT018
    assert training("imagenet/resnet-50-modern").training.progressive_from == 128


# expand


def expanded(**document: Any) -> TrainSpec:
    return TrainSpec.model_validate(expand(document))


def test_a_recipe_alone_is_the_recipe() -> None:
    for recipe in TRAININGS:
        assert expanded(recipe=recipe.name) == recipe.spec


def test_a_document_without_a_recipe_is_left_as_it_is() -> None:
    for document in ({"a": 1}, {}, {"recipe": None}, {"recipe": 5}):
        assert expand(document) is document


def test_given_fields_are_laid_over_the_recipes() -> None:
    spec = expanded(recipe="cifar10/resnet-20", optim={"lr": 0.05, "schedule": {"gamma": 0.2}}, labels={"team": "a"})
    base = training("cifar10/resnet-20")
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
