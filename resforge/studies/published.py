"""The figures that were published for a study's networks, each with where.

Those of the paper's own tables are the recipes'. A figure is comparable where the study trains on the same images by
the same protocol; elsewhere it is there for orientation.
"""

from collections.abc import Mapping

from pydantic import Field

from resforge.recipes import all_recipes
from resforge.recipes.cifar import METRIC as CIFAR_10
from resforge.storage import Document
from resforge.studies.catalog import StudySpec


class Published(Document):
    """An error in percent, and where it was published."""

    error: float | None = Field(description="Null where the source gives none, such as for a training that failed.")
    metric: str
    source: str
    note: str = ""
    comparable: bool = Field(default=False, description="Whether the study trains on the same images and alike.")


# What a study's series is called as a recipe, where another name or figure goes with it than its own.
_RECIPES: Mapping[tuple[str, str], str] = {
    ("shortcuts", "resnet-110-C"): "resnet-110-conv1x1",
    ("degradation", "resnet-34"): "resnet-34-A",  # on ImageNet: the residual networks of table 2 have option A
    ("shortcuts", "resnet-34-B"): "resnet-34",
}
_OTHERS: Mapping[tuple[str, str], tuple[float, str, str]] = {
    ("preactivation", "resnet-110"): (6.61, "He et al. 2016, table 3", ""),
    ("shortcuts", "resnet-110-A"): (6.61, "He et al. 2016, table 1", "median of five"),
}


def published(spec: StudySpec, series: str) -> Published | None:
    """What was published for the network that a series trains, or for the like of it on CIFAR-10."""
    comparable = spec.setting in ("cifar10", "imagenet") and not spec.overrides
    dataset = "imagenet" if spec.setting == "imagenet" else "cifar10"
    if dataset == "cifar10" and (spec.study, series) in _OTHERS:
        error, source, note = _OTHERS[spec.study, series]
        return Published(error=error, metric=CIFAR_10, source=source, note=note, comparable=comparable)
    own = series.removesuffix("-A") if spec.study == "shortcuts" and dataset == "cifar10" else series
    name = _RECIPES.get((spec.study, series), own)
    recipe = all_recipes().get(f"{dataset}/{name}") or all_recipes().get(f"{dataset}/{own}")
    if recipe is None or not recipe.published:
        return None
    first = recipe.published[0]
    return Published(**first.model_dump(), comparable=comparable and "another schedule" not in first.note)
