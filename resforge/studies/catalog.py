"""What studies there are, and the jobs that each consists of: pure functions.

A member's document refers to a sibling's checkpoint by {"job": "@KEY"}, until the siblings have ids.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from resforge.spec.base import LabelKey, LabelValue, Name, Part

Study = Literal["degradation", "identity", "depth", "shortcuts", "transfer"]
Setting = Literal["digits", "small", "fashion-mnist", "cifar10"]
STUDIES: Mapping[str, str] = {
    "degradation": "Does training error rise with depth, for plain and for residual networks? (He et al. 2015, fig. 6)",
    "identity": "Deeper networks made of a trained one and identity blocks, trained on (He et al. 2015, section 1).",
    "depth": "Residual networks by depth (He et al. 2015, table 6).",
    "shortcuts": "Shortcuts A, B and C (He et al. 2015, table 3).",
    "transfer": "A trained backbone on other images: frozen, tuned, and from scratch (He et al. 2015, section 4.3).",
}
SETTINGS: Mapping[str, str] = {
    "digits": "scikit-learn's digits, tiny networks: under a minute a job, to see a study run",
    "small": "10,000 images of Fashion-MNIST at 14x14, widths 8/16/32, 6 epochs: minutes on two CPU cores",
    "fashion-mnist": "all of Fashion-MNIST, the paper's CIFAR schedule at a quarter of its length, a GPU for each job",
    "cifar10": "CIFAR-10, the paper's schedule, a GPU for each job",
}


class StudySpec(Part):
    """A study to run: which, on what, and with which seeds."""

    study: Study
    setting: Setting = "small"
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1, max_length=32)
    depths: tuple[int, ...] | None = Field(
        default=None, min_length=1, max_length=16, description="Left out: the setting's own."
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="Fields of a job, laid over every training of the study."
    )
    name: Name | None = None
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=16)

    @model_validator(mode="after")
    def _values_fit(self) -> "StudySpec":
        if len(set(self.seeds)) < len(self.seeds):
            raise PydanticCustomError("seeds", "each seed may be given once", {"field": "seeds"})
        if self.depths is not None and list(self.depths) != sorted(set(self.depths)):
            raise PydanticCustomError("depths", "depths must rise", {"field": "depths"})
        if self.study in ("degradation", "identity") and self.depths is not None and len(self.depths) < 2:
            raise PydanticCustomError("depths", "this study compares two depths or more", {"field": "depths"})
        return self


@dataclass(frozen=True)
class Member:
    """One job of a study.

    Attributes:
        key: its name within the study, SERIES/seed-N.
        series: what is compared, such as plain-56; the members of a series differ by their seed.
        document: the job to post, with siblings named by "@KEY".
    """

    key: str
    series: str
    seed: int
    document: dict[str, Any]


@dataclass(frozen=True)
class _Bench:
    """A setting: the depths to compare, and the document that every training begins with."""

    depths: tuple[int, ...]
    all_depths: tuple[int, ...]
    base: dict[str, Any]
    sources: dict[str, Any]


_FEW_CHECKPOINTS = {"every_epochs": None, "keep_last": 1}
_GPU = {"workers": 1, "gpus_per_worker": 1, "cpus_per_worker": 4}
_BENCHES: Mapping[str, _Bench] = {
    "digits": _Bench(
        (8, 14),
        (8, 14, 20),
        {
            "model": {"family": "cifar", "width": 8},
            "data": {"dataset": "digits", "augment": {"pad": 1}},
            "training": {"global_batch": 64, "epochs": 3, "evaluate_train": True, "log_every_steps": 5},
            "checkpoint": _FEW_CHECKPOINTS,
        },
        {"dataset": "fashion-mnist", "downscale": 4, "train_limit": 1000, "augment": {"pad": 0}},
    ),
    "small": _Bench(
        (20, 56),
        (20, 32, 44, 56),
        {
            "model": {"family": "cifar", "width": 8},
            "data": {"dataset": "fashion-mnist", "downscale": 2, "train_limit": 10_000},
            "training": {"global_batch": 128, "epochs": 6, "evaluate_train": True, "log_every_steps": 13},
            "checkpoint": _FEW_CHECKPOINTS,
        },
        {"dataset": "digits", "downscale": 1, "train_limit": None},
    ),
    "fashion-mnist": _Bench(
        (20, 56, 110),
        (20, 32, 44, 56, 110),
        {
            "model": {"family": "cifar"},
            "data": {"dataset": "fashion-mnist", "augment": {"pad": 2, "flip": True}},
            "training": {"global_batch": 128, "steps": 16_000, "evaluate_train": True, "log_every_steps": 100},
            "checkpoint": {"every_epochs": 5, "keep_last": 1},
            "scaling": _GPU,
        },
        {"dataset": "digits", "augment": {"pad": 1, "flip": False}},
    ),
    "cifar10": _Bench(
        (20, 56, 110),
        (20, 32, 44, 56, 110, 1202),
        {
            "model": {"family": "cifar"},
            "data": {"dataset": "cifar10", "augment": {"pad": 4, "flip": True}},
            "training": {"global_batch": 128, "steps": 64_000, "evaluate_train": True, "log_every_steps": 100},
            "checkpoint": {"every_epochs": 10, "keep_last": 1},
            "scaling": _GPU,
        },
        {"dataset": "cifar10"},
    ),
}


def expand(spec: StudySpec) -> tuple[Member, ...]:
    """The jobs of a study, in an order in which a job comes behind those that it builds upon."""
    bench = _BENCHES[spec.setting]
    return tuple(_EXPANSIONS[spec.study](spec, bench))


def _train(spec: StudySpec, bench: _Bench, series: str, seed: int, **changes: Any) -> Member:
    document: dict[str, Any] = {}
    for part in (bench.base, {"training": {"seed": seed}}, changes, spec.overrides):
        document = _laid_over(document, part)
    if {"epochs", "steps"} <= document["training"].keys():  # an override of one drops the setting's other
        given = spec.overrides.get("training", {})
        document["training"].pop("steps" if "epochs" in given else "epochs")
    document["name"] = f"{spec.study}/{series}/{seed}".lower()
    return Member(f"{series}/seed-{seed}", series, seed, document)


def _laid_over(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _laid_over(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return merged


_KINDS = (("plain", "none"), ("resnet", "A"))


def _degradation(spec: StudySpec, bench: _Bench) -> Iterator[Member]:
    for seed in spec.seeds:
        for kind, shortcut in _KINDS:
            for depth in spec.depths or bench.depths:
                yield _train(spec, bench, f"{kind}-{depth}", seed, model=_model(depth, shortcut))


def _depth(spec: StudySpec, bench: _Bench) -> Iterator[Member]:
    for seed in spec.seeds:
        for depth in spec.depths or bench.all_depths:
            # 110 layers and more start gently (section 4.2).
            deep = {"optim": {"schedule": {"warmup_steps": 400, "warmup_lr": 0.01}}} if depth >= 110 else {}
            yield _train(spec, bench, f"resnet-{depth}", seed, model=_model(depth, "A"), **deep)


def _shortcuts(spec: StudySpec, bench: _Bench) -> Iterator[Member]:
    for seed in spec.seeds:
        for depth in spec.depths or bench.depths[-1:]:
            for shortcut in "ABC":
                yield _train(spec, bench, f"resnet-{depth}-{shortcut}", seed, model=_model(depth, shortcut))


def _identity(spec: StudySpec, bench: _Bench) -> Iterator[Member]:
    shallow, deep = (spec.depths or bench.depths)[:2]
    for seed in spec.seeds:
        for kind, shortcut in _KINDS:
            first = _train(spec, bench, f"{kind}-{shallow}", seed, model=_model(shallow, shortcut))
            yield first
            trained = {"job": f"@{first.key}", "which": "latest"}
            # The grown network trains on for as long again; so does the shallow one, for a fair comparison.
            yield _train(
                spec, bench, f"{kind}-{shallow}-continued", seed,
                model=_model(shallow, shortcut), init={"checkpoint": trained, "take": "all"},
            )  # fmt: skip
            yield _train(
                spec, bench, f"{kind}-{deep}-grown", seed,
                model=_model(deep, shortcut), init={"checkpoint": trained, "take": "grow"},
            )  # fmt: skip
            yield _train(spec, bench, f"{kind}-{deep}-scratch", seed, model=_model(deep, shortcut))


def _transfer(spec: StudySpec, bench: _Bench) -> Iterator[Member]:
    for seed in spec.seeds:
        for depth in (spec.depths or bench.depths)[:1]:
            model = _model(depth, "A")
            first = _train(spec, bench, f"resnet-{depth}-source", seed, model=model, data=bench.sources)
            yield first
            init = {"checkpoint": {"job": f"@{first.key}", "which": "latest"}, "take": "backbone"}
            for how, changes in (
                ("frozen", {"init": {**init, "freeze": True}}),
                ("tuned", {"init": init}),
                ("scratch", {}),
            ):
                yield _train(spec, bench, f"resnet-{depth}-{how}", seed, model=model, **changes)


def _model(depth: int, shortcut: str) -> dict[str, Any]:
    return {"depth": depth, "shortcut": shortcut}


_EXPANSIONS: Mapping[str, Callable[[StudySpec, _Bench], Iterator[Member]]] = {
    "degradation": _degradation,
    "identity": _identity,
    "depth": _depth,
    "shortcuts": _shortcuts,
    "transfer": _transfer,
}
assert set(_EXPANSIONS) == set(STUDIES) == set(get_args(Study))


def with_ids(document: Any, ids: Mapping[str, str]) -> Any:
    """The document with every "@KEY" replaced by the job's id."""
    if isinstance(document, dict):
        return {key: with_ids(value, ids) for key, value in document.items()}
    if isinstance(document, str) and document.startswith("@"):
        return ids[document[1:]]
    return document
