"""The figures that were published for a study's networks, each with where.

Those of the paper's own tables are the recipes'. A figure is comparable where the study trains on the same images by
the same protocol; elsewhere it is there for orientation.
"""

from collections.abc import Mapping
from functools import cache

from pydantic import Field

from resforge import recipes
from resforge.spec import TrainSpec
from resforge.storage import Document
from resforge.studies.catalog import StudySpec


class Published(Document):
    """An error in percent, and where it was published."""

    error: float | None = Field(description="Null where the source gives none, such as for a training that failed.")
    metric: str
    source: str
    note: str = ""
    comparable: bool = Field(default=False, description="Whether the study trains on the same images and alike.")


_CIFAR = "CIFAR-10 test error"
_TABLE_1, _TABLE_3 = "He et al. 2016, table 1", "He et al. 2016, table 3"
_LI = "Li et al. 2018, table 1"

# Test error in percent on CIFAR-10, by study ("" for all) and series.
_OTHERS: Mapping[tuple[str, str], tuple[float | None, str, str]] = {
    ("", "plain-20"): (8.18, _LI, "without shortcuts, by another schedule"),
    ("", "plain-56"): (13.31, _LI, "without shortcuts, by another schedule"),
    ("", "plain-110"): (None, "He et al. 2015, section 4.2", "above 60"),
    ("preactivation", "resnet-110"): (6.61, _TABLE_3, ""),
    ("preactivation", "preact-110"): (6.37, _TABLE_3, ""),
    ("preactivation", "resnet-164"): (5.93, _TABLE_3, ""),
    ("preactivation", "preact-164"): (5.46, _TABLE_3, ""),
    ("preactivation", "resnet-1001"): (7.61, _TABLE_3, ""),
    ("preactivation", "preact-1001"): (4.92, _TABLE_3, ""),
    ("shortcuts", "resnet-110-A"): (6.61, _TABLE_1, "median of five"),
    ("shortcuts", "resnet-110-C"): (12.22, _TABLE_1, "there as 1x1 convolution"),
    ("shortcuts", "resnet-110-scaling"): (12.35, _TABLE_1, "0.5 on both"),
    ("shortcuts", "resnet-110-exclusive-gating"): (8.70, _TABLE_1, "first bias -6"),
    ("shortcuts", "resnet-110-shortcut-gating"): (6.91, _TABLE_1, "first bias -6"),
    ("shortcuts", "resnet-110-shortcut-gating-0"): (12.86, _TABLE_1, "first bias 0"),
    ("shortcuts", "resnet-110-dropout"): (None, _TABLE_1, "failed: above 20"),
}


def published(spec: StudySpec, series: str) -> Published | None:
    """What was published for the network that a series trains, or for the like of it on CIFAR-10."""
    comparable = spec.setting in ("cifar10", "imagenet") and not spec.overrides
    if spec.setting == "imagenet":
        # The residual networks of table 2 have option A, and so has that of 18 layers (section 4.1).
        names = (series + "-A", series) if spec.study == "degradation" else (series, series + "-A")
        figures = _of_recipes("imagenet")
        found = next((figures[name] for name in names if name in figures), None)
    else:
        other = _OTHERS.get((spec.study, series)) or _OTHERS.get(("", series))
        if other is not None:
            error, source, note = other
            same = comparable and source != _LI
            return Published(error=error, metric=_CIFAR, source=source, note=note, comparable=same)
        name = series.removesuffix("-A") if spec.study == "shortcuts" else series
        found = _of_recipes("cifar10").get(name)
    if found is None:
        return None
    return Published(error=found.error, metric=found.metric, source=found.source, comparable=comparable)


@cache
def _of_recipes(dataset: str) -> dict[str, recipes.Published]:
    """The recipes' figures on a data set, by the network's name and its option: resnet-34, resnet-34-B, plain-18."""
    found: dict[str, recipes.Published] = {}
    for recipe in recipes.all_recipes().values():
        if not recipe.published or not isinstance(recipe.spec, TrainSpec) or recipe.spec.data.dataset != dataset:
            continue
        model = recipe.spec.model
        name = model.name.rpartition("/")[2]
        found.setdefault(name, recipe.published[0])
        if model.shortcut in ("A", "B", "C"):
            found.setdefault(f"{name.removesuffix('-' + model.shortcut)}-{model.shortcut}", recipe.published[0])
    return found
