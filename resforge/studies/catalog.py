"""What studies there are, and the jobs that each consists of: pure functions.

A member's document refers to a sibling's checkpoint by {"job": "@KEY"}, until the siblings have ids.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from resforge.spec.base import LabelKey, LabelValue, Name, Part, laid_over
from resforge.studies.benches import BENCHES, SETTINGS, Bench, Setting

Study = Literal["degradation", "identity", "depth", "shortcuts", "preactivation", "transfer"]
Role = Literal["training", "start", "evaluation", "reading"]
STUDIES: Mapping[str, str] = {
    "degradation": "Does training error rise with depth, for plain and for residual networks? (He et al. 2015, fig. 6)",
    "identity": "Deeper networks made of a trained one and identity blocks, trained on (He et al. 2015, section 1).",
    "depth": "Residual networks by depth (He et al. 2015, table 6).",
    "shortcuts": "Shortcuts A, B and C (He et al. 2015, table 3), scaled, gated and dropped ones (2016, table 1).",
    "preactivation": "Batch norm and relu behind the convolutions and before them (He et al. 2016, table 3).",
    "transfer": "A trained backbone on other images: frozen, tuned, and from scratch (He et al. 2015, section 4.3).",
}
MOST_SEEDS = 32
MOST_JOBS = 500
# What tells a study's networks apart; laid over all of them, it would make them one.
OF_THE_STUDY = (
    ("kind",), ("name",), ("labels",), ("recipe",), ("init",), ("training", "seed"), ("model", "family"),
    ("model", "depth"), ("model", "block"), ("model", "shortcut"), ("model", "order"),
)  # fmt: skip
_PARTS = {"model", "data", "optim", "training", "scaling", "checkpoint"}


class StudySpec(Part):
    """A study to run: which, on what, and with which seeds."""

    study: Study
    setting: Setting = "small"
    seeds: tuple[int, ...] = Field(
        default=(0, 1, 2),
        min_length=1,
        max_length=MOST_SEEDS,
        description="Of every network. A number stands for so many, from 0.",
    )
    depths: tuple[int, ...] | None = Field(
        default=None, min_length=1, max_length=16, description="Weighted layers. Left out: the setting's own."
    )
    workers: int | None = Field(
        default=None, ge=1, le=4096, description="Workers of every training. Left out: the setting's own."
    )
    source: Name | None = Field(
        default=None, description="For transfer: the data set that the backbone is trained on. Left out: the setting's."
    )
    target: Name | None = Field(
        default=None, description="For transfer: the data set that it is taken to. Left out: the setting's."
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="Fields of a job, laid over every training of the study."
    )
    readings: bool | None = Field(
        default=None,
        description="Look into the networks of the first seed, too, where the study has readings. "
        "Left out: except on digits.",
    )
    name: Name | None = None
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=16)

    @field_validator("seeds", mode="before")
    @classmethod
    def _a_number_of_seeds(cls, given: Any) -> Any:
        if not isinstance(given, int) or isinstance(given, bool):
            return given
        if not 1 <= given <= MOST_SEEDS:
            raise PydanticCustomError("seeds", "expected 1 to {most} seeds, or a list of them", {"most": MOST_SEEDS})
        return tuple(range(given))

    @model_validator(mode="after")
    def _values_fit(self) -> "StudySpec":
        settings = settings_of(self.study)
        if self.setting not in settings:
            raise _refusal("setting", "the study {study} has the settings {accepted}", self, accepted=settings)
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise _refusal("seeds", "seeds are whole numbers from 0, and each may be given once", self)
        if self.depths is not None and list(self.depths) != sorted(set(self.depths)):
            raise _refusal("depths", "depths must rise", self)
        if self.study == "degradation" and self.depths is not None and len(self.depths) < 2:
            raise _refusal("depths", "the study {study} compares two depths or more", self)
        if self.study == "identity" and self.depths is not None and len(self.depths) != 2:
            raise _refusal("depths", "the study {study} grows one depth to another: give two", self)
        if self.study == "transfer":
            self._two_data_sets()
        elif self.source or self.target:
            field = "source" if self.source else "target"
            raise _refusal(field, "the study {study} has one data set, its setting's", self)
        return self

    def _two_data_sets(self) -> None:
        source, target = transferred(self)
        if source["dataset"] == target["dataset"]:
            raise _refusal(
                "source" if self.target else "target",
                "transfer is between two data sets, and both are {dataset}; name another",
                self,
                dataset=source["dataset"],
            )

    @model_validator(mode="after")
    def _not_too_many(self) -> "StudySpec":
        if (count := len(expand(self))) > MOST_JOBS:
            raise _refusal(
                "seeds", "these are {count} jobs; a study has at most {most}", self, count=count, most=MOST_JOBS
            )
        return self

    @field_validator("overrides")
    @classmethod
    def _mappings(cls, overrides: dict[str, Any]) -> dict[str, Any]:
        for name in _PARTS & overrides.keys():
            if not isinstance(overrides[name], dict):
                raise PydanticCustomError("mapping", "{name}: expected a mapping of fields", {"name": name})
        return overrides

    @model_validator(mode="after")
    def _overrides_leave_the_comparison(self) -> "StudySpec":
        for path in (*OF_THE_STUDY, *([("data", "dataset")] if self.study == "transfer" else [])):
            if _has(self.overrides, path):
                message = "the study {study} sets this field itself; it can't be laid over all its trainings"
                raise _refusal(".".join(("overrides", *path)), message, self)
        return self

    @property
    def reads(self) -> bool:
        """Whether readings are taken."""
        return self.readings if self.readings is not None else self.setting != "digits"


def _refusal(field: str, message: str, spec: StudySpec, **values: Any) -> PydanticCustomError:
    accepted = {key: ", ".join(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return PydanticCustomError("study", message, {"field": field, "study": spec.study, **accepted})


def _has(document: Any, path: tuple[str, ...]) -> bool:
    for step in path:
        if not isinstance(document, Mapping) or step not in document:
            return False
        document = document[step]
    return True


def settings_of(study: str) -> tuple[str, ...]:
    """The settings that a study has."""
    return tuple(setting for setting in SETTINGS if study in BENCHES[setting].depths)


@dataclass(frozen=True)
class Member:
    """One job of a study.

    Attributes:
        key: its name within the study, such as plain-56/seed-1.
        series: what is compared, such as plain-56; the trainings of a series differ by their seed.
        role: training; start (a network evaluated before its first step); evaluation or reading of a training.
        document: the job to post, with siblings named by "@KEY".
    """

    key: str
    series: str
    seed: int
    document: dict[str, Any]
    role: Role = "training"


def expand(spec: StudySpec) -> tuple[Member, ...]:
    """The jobs of a study, in an order in which a job comes behind those that it builds upon."""
    bench = BENCHES[spec.setting]
    members = tuple(_EXPANSIONS[spec.study](spec, bench, spec.depths or bench.depths[spec.study]))
    return (*members, *_evaluations(spec, members), *_readings(spec, members))


def _train(spec: StudySpec, bench: Bench, series: str, seed: int, *, longer: int = 1, **own: Any) -> Member:
    """A training: the setting's, with the study's overrides, and over both what this network is.

    Args:
        longer: a multiple of the length that the setting and the overrides give.
    """
    document: dict[str, Any] = {}
    warm = bench.warm_from is not None and own["model"]["depth"] >= bench.warm_from
    gently = {"optim": {"schedule": {"warmup_lr": 0.01, "warmup_until_error": 0.8}}} if warm else {}
    workers = {} if spec.workers is None else {"scaling": {"workers": spec.workers}}
    for part in (bench.base, gently, workers, spec.overrides, {"training": {"seed": seed}}, own):
        document = laid_over(document, part)
    for part in (own, spec.overrides):
        lengths = [name for name in ("epochs", "steps") if name in part.get("training", {})]
        if len(lengths) == 1:  # one of them drops the other of what it is laid over
            document["training"].pop("steps" if lengths == ["epochs"] else "epochs", None)
        if lengths:
            break
    for name in {"epochs", "steps"} & document["training"].keys() if longer > 1 else ():
        with suppress(TypeError, ValueError):  # what is no number is refused as a job
            document["training"][name] = int(document["training"][name]) * longer
    document["name"] = f"{spec.study}/{series}/{seed}".lower()
    return Member(f"{series}/seed-{seed}", series, seed, document)


_KINDS = (("plain", "none"), ("resnet", "A"))


def _degradation(spec: StudySpec, bench: Bench, depths: tuple[int, ...]) -> Iterator[Member]:
    for seed in spec.seeds:
        for kind, shortcut in _KINDS:
            for depth in depths:
                yield _train(spec, bench, f"{kind}-{depth}", seed, model=_model(depth, shortcut))


def _depth(spec: StudySpec, bench: Bench, depths: tuple[int, ...]) -> Iterator[Member]:
    for seed in spec.seeds:
        for depth in depths:
            # What the paper goes on with: A, and on ImageNet B from 34 layers on (section 4.1).
            shortcut = "B" if spec.setting == "imagenet" and depth > 18 else "A"
            yield _train(spec, bench, f"resnet-{depth}", seed, model=_model(depth, shortcut))


# He et al. 2016, table 1: what h(x) is instead of x. A 1x1 convolution everywhere is option C.
_OTHER_SHORTCUTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("scaling", {"shortcut": "scaling", "shortcut_scale": 0.5, "residual_scale": 0.5}),
    ("exclusive-gating", {"shortcut": "exclusive-gating", "gate_bias": -6.0}),
    ("shortcut-gating", {"shortcut": "shortcut-gating", "gate_bias": -6.0}),
    ("shortcut-gating-0", {"shortcut": "shortcut-gating", "gate_bias": 0.0}),
    ("dropout", {"shortcut": "dropout", "shortcut_dropout": 0.5}),
)


def _shortcuts(spec: StudySpec, bench: Bench, depths: tuple[int, ...]) -> Iterator[Member]:
    options = tuple((option, {"shortcut": option}) for option in "ABC")
    for seed in spec.seeds:
        for depth in depths:
            for name, fields in options if spec.setting == "imagenet" else (*options, *_OTHER_SHORTCUTS):
                yield _train(spec, bench, f"resnet-{depth}-{name}", seed, model={"depth": depth, **fields})


# The depths of CIFAR networks that were published with bottlenecks (He et al. 2016, table 3).
BOTTLENECKS = (164, 1001)


def _preactivation(spec: StudySpec, bench: Bench, depths: tuple[int, ...]) -> Iterator[Member]:
    for seed in spec.seeds:
        for depth in depths:
            model = {"depth": depth, "block": "bottleneck"} if depth in BOTTLENECKS else _model(depth, "A")
            for name, order in (("resnet", "post"), ("preact", "pre")):
                yield _train(spec, bench, f"{name}-{depth}", seed, model={**model, "order": order})


# A step that changes no weight: below the last bit of any. A warm-up, or what else was asked of the rate, gives way.
_STILL: Mapping[str, Any] = {"lr": 1e-30, "momentum": 0, "weight_decay": 0, "schedule": {"kind": "constant"}}


def _identity(spec: StudySpec, bench: Bench, depths: tuple[int, ...]) -> Iterator[Member]:
    shallow, deep = depths
    for seed in spec.seeds:
        for kind, shortcut in _KINDS:
            first = _train(spec, bench, f"{kind}-{shallow}", seed, model=_model(shallow, shortcut))
            yield first
            trained = {"job": f"@{first.key}", "which": "latest"}
            grown: dict[str, Any] = {"model": _model(deep, shortcut), "init": {"checkpoint": trained, "take": "grow"}}
            # The network before its first step: a step of the classifier alone, too short to change any weight.
            start = _train(
                spec, bench, f"{kind}-{deep}-start", seed, model=grown["model"],
                init={**grown["init"], "freeze": True},
                training={"steps": 1},
            )  # fmt: skip
            yield Member(start.key, start.series, start.seed, {**start.document, "optim": _STILL}, "start")
            yield _train(spec, bench, f"{kind}-{deep}-grown", seed, **grown)
            # Two controls: the shallow network trained on for as long, and the deep one from scratch for the same
            # number of steps in all.
            yield _train(
                spec, bench, f"{kind}-{shallow}-continued", seed,
                model=_model(shallow, shortcut), init={"checkpoint": trained, "take": "all"},
            )  # fmt: skip
            yield _train(spec, bench, f"{kind}-{deep}-scratch", seed, model=_model(deep, shortcut), longer=2)


def transferred(spec: StudySpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `data` of a transfer's source and target. What the setting says of its own data set goes with that alone."""
    bench = BENCHES[spec.setting]
    own = bench.base["data"]

    def data(asked: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
        name = asked or given.get("dataset") or own["dataset"]
        for known in (given, own, BENCHES["digits"].base["data"]):
            if known.get("dataset") == name:
                return {"downscale": 1, "train_limit": None, **known}
        return {"dataset": name, "downscale": 1, "train_limit": None, "augment": {"pad": 2, "flip": False}}

    return data(spec.source, bench.source), data(spec.target, bench.target)


def _transfer(spec: StudySpec, bench: Bench, depths: tuple[int, ...]) -> Iterator[Member]:
    source, target = transferred(spec)
    for seed in spec.seeds:
        for depth in depths:
            model = _model(depth, "A")
            first = _train(spec, bench, f"resnet-{depth}-source", seed, model=model, data=_over(spec, source))
            yield first
            init = {"checkpoint": {"job": f"@{first.key}", "which": "latest"}, "take": "backbone"}
            for how, changes in (
                ("frozen", {"init": {**init, "freeze": True}}),
                ("tuned", {"init": init}),
                ("scratch", {}),
            ):
                own: dict[str, Any] = {"model": model, "data": _over(spec, target), **changes}
                yield _train(spec, bench, f"resnet-{depth}-{how}", seed, **own)


def _over(spec: StudySpec, data: Mapping[str, Any]) -> dict[str, Any]:
    """The study's overrides of `data` go before what is known of a data set."""
    given = spec.overrides.get("data", {})
    return laid_over(data, given if isinstance(given, Mapping) else {})


def _model(depth: int, shortcut: str) -> dict[str, Any]:
    return {"depth": depth, "shortcut": shortcut}


def _evaluations(spec: StudySpec, members: tuple[Member, ...]) -> Iterator[Member]:
    """ImageNet's published errors are of ten crops (He et al. 2015, tables 2 and 3)."""
    for member in members if spec.setting == "imagenet" else ():
        document = {
            "kind": "evaluate",
            "name": f"{member.document['name']}/ten-crop",
            "checkpoints": [{"job": f"@{member.key}", "which": "latest"}],
            "protocol": {"views": "ten-crop"},
            "scaling": {"workers": 1, "gpus_per_worker": 1, "cpus_per_worker": 8},
        }
        yield Member(f"{member.key}/ten-crop", member.series, member.seed, document, "evaluation")


# By study: readings, and the trainings that they are taken of.
_READINGS: Mapping[str, tuple[tuple[str, ...], Callable[[str], bool]]] = {
    "degradation": (("responses", "gradients"), lambda _: True),
    "depth": (("responses",), lambda _: True),
    "identity": (("travel",), lambda series: series.endswith("-grown")),
    "preactivation": (("gradients",), lambda _: True),
}


def _readings(spec: StudySpec, members: tuple[Member, ...]) -> Iterator[Member]:
    names, chosen = _READINGS.get(spec.study, ((), lambda _: False))
    for member in members if spec.reads else ():
        if member.seed != spec.seeds[0] or member.role != "training" or not chosen(member.series):
            continue
        scaling = member.document.get("scaling", {})
        for name in names:
            document = {
                "kind": "analyse",
                "name": f"{member.document['name']}/{name}",
                "checkpoint": {"job": f"@{member.key}", "which": "latest"},
                "reading": {"name": name},
                "data": {"limit": 2000},
                "scaling": {**scaling, "workers": 1},
            }
            yield Member(f"{member.key}/{name}", member.series, member.seed, document, "reading")


_EXPANSIONS: Mapping[str, Callable[[StudySpec, Bench, tuple[int, ...]], Iterator[Member]]] = {
    "degradation": _degradation,
    "identity": _identity,
    "depth": _depth,
    "shortcuts": _shortcuts,
    "preactivation": _preactivation,
    "transfer": _transfer,
}
assert set(_EXPANSIONS) == set(STUDIES) == set(get_args(Study))


def with_ids(document: Any, ids: Mapping[str, str]) -> Any:
    """The document with every {"job": "@KEY"} naming the job's id. What names no sibling stays as it is."""
    if isinstance(document, dict):
        return {
            key: ids.get(value[1:], value)
            if key == "job" and isinstance(value, str) and value.startswith("@")
            else with_ids(value, ids)
            for key, value in document.items()
        }
    if isinstance(document, list):
        return [with_ids(value, ids) for value in document]
    return document
