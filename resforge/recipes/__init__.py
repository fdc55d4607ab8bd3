"""Named job specifications: the paper's experiments, each with the errors published for it, and small ones that end
soon on a laptop.

`get(name)` gives a recipe; `expand(document)` turns a document that names a recipe and overrides some of its fields
into a whole one.
"""

import difflib
from functools import cache
from typing import Any

from resforge.recipes import cifar, imagenet, small
from resforge.recipes.recipe import Published, Recipe
from resforge.spec.base import laid_over

__all__ = ["Published", "Recipe", "UnknownRecipe", "all_recipes", "expand", "get"]


class UnknownRecipe(LookupError):
    """There is no such recipe."""

    def __init__(self, name: str) -> None:
        close = difflib.get_close_matches(name, all_recipes(), n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(close)}?" if close else ";"
        super().__init__(f"there is no recipe {name!r}{hint} `resforge recipes` lists them all")


@cache
def all_recipes() -> dict[str, Recipe]:
    """Every recipe by name."""
    return {recipe.name: recipe for part in (small, cifar, imagenet) for recipe in part.recipes()}


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
    return laid_over(base, document)
