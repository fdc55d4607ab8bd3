"""Every study in every setting is made of jobs that can run."""

from typing import Any

import pytest
from pydantic import ValidationError

from resforge.spec import AnalyseSpec, EvaluateSpec, TrainSpec, parse_job
from resforge.studies import SETTINGS, STUDIES, Member, StudySpec, expand, settings_of
from resforge.studies.benches import BENCHES
from resforge.studies.catalog import OF_THE_STUDY, with_ids

Job = TrainSpec | EvaluateSpec | AnalyseSpec
PAIRS = [(study, setting) for study in STUDIES for setting in settings_of(study)]
KINDS = {"training": TrainSpec, "start": TrainSpec, "evaluation": EvaluateSpec, "reading": AnalyseSpec}


def spec(study: str, setting: str = "small", **fields: Any) -> StudySpec:
    # CIFAR-10 has no data set that everybody takes it to, so a transfer names one.
    named = {"target": "cifar100"} if (study, setting) == ("transfer", "cifar10") else {}
    return StudySpec.model_validate({"study": study, "setting": setting, **named, **fields})


def jobs(found: StudySpec) -> dict[str, tuple[Member, Job]]:
    """The study's jobs, parsed, by key. One that builds upon a later one, or upon none, is no job."""
    ids: dict[str, str] = {}
    parsed: dict[str, tuple[Member, Job]] = {}
    for index, member in enumerate(expand(found)):
        parsed[member.key] = member, parse_job(with_ids(member.document, ids))
        ids[member.key] = (
            f"job-{'abcdefghijklmnopqrstuvwxyz'[index % 26] * 11}{'abcdefghijklmnopqrstuvwxyz'[index // 26]}"
        )
    return parsed


def test_the_settings_of_each_study() -> None:
    known = {study: set(settings_of(study)) for study in STUDIES}
    everywhere = set(SETTINGS)
    assert known == {
        "degradation": everywhere, "depth": everywhere, "shortcuts": everywhere,
        "identity": everywhere - {"imagenet"}, "preactivation": everywhere - {"imagenet"},
        "transfer": everywhere - {"imagenet"},
    }  # fmt: skip


@pytest.mark.parametrize("readings", [True, False, None])
@pytest.mark.parametrize(("study", "setting"), PAIRS)
def test_every_member_is_a_job_behind_those_that_it_builds_upon(
    study: str, setting: str, readings: bool | None
) -> None:
    found = jobs(spec(study, setting, seeds=[3, 5], readings=readings))
    members = [member for member, _ in found.values()]
    assert len(found) == len(expand(spec(study, setting, seeds=[3, 5], readings=readings)))
    for member, job in found.values():
        assert isinstance(job, KINDS[member.role])
        if isinstance(job, TrainSpec):
            assert job.training.seed == member.seed
            assert job.training.evaluate_train
        else:
            assert len(job.sources) == 1
    by_seed = {seed: [m.series for m in members if m.seed == seed and m.role != "reading"] for seed in (3, 5)}
    assert by_seed[3] == by_seed[5]
    assert all(member.seed == 3 for member in members if member.role == "reading")
    if readings is False:
        assert all(member.role != "reading" for member in members)


@pytest.mark.parametrize(("study", "setting"), PAIRS)
def test_the_trainings_of_a_seed_are_all_different_and_of_a_series_differ_by_the_seed(study: str, setting: str) -> None:
    found = jobs(spec(study, setting, seeds=[3, 5]))
    trained = {key: job for key, (_, job) in found.items() if isinstance(job, TrainSpec)}
    bare = {
        key: job.model_copy(update={"name": None, "training": job.training.model_copy(update={"seed": 0})})
        for key, job in trained.items()
    }
    for seed in (3, 5):
        own = [job.model_dump_json() for key, job in bare.items() if key.endswith(f"seed-{seed}")]
        assert len(set(own)) == len(own)
    for key, job in bare.items():
        twin = bare[key.replace("seed-3", "seed-5")]
        assert job.model_copy(update={"init": None}) == twin.model_copy(update={"init": None})


@pytest.mark.parametrize(("study", "setting"), PAIRS)
@pytest.mark.parametrize("path", OF_THE_STUDY, ids=".".join)
def test_what_would_make_the_networks_one_is_refused(study: str, setting: str, path: tuple[str, ...]) -> None:
    value: Any = "anything"
    for step in reversed(path):
        value = {step: value}
    with pytest.raises(ValidationError, match=r"sets this field itself") as caught:
        spec(study, setting, overrides=value)
    [error] = caught.value.errors()
    assert error["ctx"]["field"] == ".".join(("overrides", *path))


def test_a_transfer_lays_its_data_sets_itself() -> None:
    with pytest.raises(ValidationError, match="sets this field itself"):
        spec("transfer", overrides={"data": {"dataset": "digits"}})
    assert spec("degradation", overrides={"data": {"dataset": "mnist"}})


def test_degradation_compares_plain_and_residual_by_depth() -> None:
    found = jobs(spec("degradation"))
    assert {member.series for member, _ in found.values()} == {"plain-20", "plain-56", "resnet-20", "resnet-56"}
    # Three seeds of each, and two readings of each of the first seed.
    assert (len(found), sum(member.role == "reading" for member, _ in found.values())) == (20, 8)
    _, job = found["plain-20/seed-0"]
    assert isinstance(job, TrainSpec)
    assert (job.data.downscale, job.data.train_limit, job.model.width, job.training.epochs) == (2, 10_000, 8, 6)
    assert (job.model.shortcut, job.name) == ("none", "degradation/plain-20/0")


def test_on_digits_nothing_is_read_unless_asked() -> None:
    assert all(member.role == "training" for member in expand(spec("degradation", "digits")))
    assert any(member.role == "reading" for member in expand(spec("degradation", "digits", readings=True)))


def test_identity_grows_the_shallow_network_of_the_same_seed() -> None:
    members = {member.key: member for member in expand(spec("identity", "digits", seeds=[7]))}
    init = members["resnet-14-grown/seed-7"].document["init"]
    assert init == {"checkpoint": {"job": "@resnet-8/seed-7", "which": "latest"}, "take": "grow"}
    assert "init" not in members["plain-14-scratch/seed-7"].document


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"overrides": {"training": {"epochs": 5}}},
        {"overrides": {"training": {"steps": 40}, "optim": {"lr": 0.2, "nesterov": True}}},
        {"overrides": {"optim": {"schedule": {"warmup_steps": 100, "warmup_lr": 0.05}}}},
        {"overrides": {"optim": {"schedule": {"kind": "plateau", "patience": 2, "min_lr": 1e-3}}}},
        # From 110 layers a network warms up at 0.01, which its start must not.
        {"setting": "cifar10", "depths": [20, 110]},
    ],
    ids=str,
)
def test_a_grown_network_is_shown_before_its_first_step_as_it_is(fields: dict[str, Any]) -> None:
    found = jobs(spec(**{"study": "identity", "setting": "digits", "seeds": [0], **fields}))
    starts = [job for member, job in found.values() if member.role == "start"]
    assert len(starts) == 2
    for job in starts:
        assert isinstance(job, TrainSpec)
        assert job.init is not None
        assert (job.init.take, job.init.freeze) == ("grow", True)
        assert (job.training.steps, job.training.epochs) == (1, None)
        assert (job.optim.momentum, job.optim.weight_decay, job.optim.nesterov) == (0, 0, False)
        schedule = job.optim.schedule
        assert (schedule.kind, schedule.warmup_steps, schedule.warmup_until_error) == ("constant", 0, None)
        assert job.optim.lr < 1e-20


def test_the_deep_network_from_scratch_takes_as_many_steps_as_both_trainings_together() -> None:
    lengths: tuple[tuple[dict[str, Any], tuple[int | None, int | None]], ...] = (
        ({}, (6, None)),
        ({"training": {"steps": 40}}, (None, 80)),
        ({"training": {"steps": "40"}}, (None, 80)),
        ({"training": {"epochs": 2.0}}, (4, None)),
    )
    for overrides, length in lengths:
        _, job = jobs(spec("identity", "digits", seeds=[0], overrides=overrides))["plain-14-scratch/seed-0"]
        assert isinstance(job, TrainSpec)
        assert (job.training.epochs, job.training.steps) == length


def test_preactivation_compares_one_network_in_both_orders() -> None:
    found = jobs(spec("preactivation", "cifar10", seeds=[0], readings=False))
    orders = {key: job.model for key, (_, job) in found.items() if isinstance(job, TrainSpec)}
    assert [(key, model.order, model.bottleneck) for key, model in orders.items()] == [
        ("resnet-110/seed-0", "post", False), ("preact-110/seed-0", "pre", False),
        ("resnet-164/seed-0", "post", True), ("preact-164/seed-0", "pre", True),
    ]  # fmt: skip


def test_shortcuts_are_those_of_both_papers() -> None:
    found = jobs(spec("shortcuts", "cifar10", seeds=[0]))
    models = {key: job.model for key, (_, job) in found.items() if isinstance(job, TrainSpec)}
    assert {key.split("/")[0].removeprefix("resnet-110-"): model.shortcut for key, model in models.items()} == {
        "A": "A", "B": "B", "C": "C", "scaling": "scaling", "exclusive-gating": "exclusive-gating",
        "shortcut-gating": "shortcut-gating", "shortcut-gating-0": "shortcut-gating", "dropout": "dropout",
    }  # fmt: skip
    biases = [models[f"resnet-110-shortcut-gating{end}/seed-0"].gate_bias for end in ("", "-0")]
    assert biases == [-6, 0]
    assert {m.series for m in expand(spec("shortcuts", "imagenet"))} == {f"resnet-34-{option}" for option in "ABC"}


def test_imagenet_is_evaluated_by_ten_crops() -> None:
    found = jobs(spec("depth", "imagenet", seeds=[0], readings=False))
    evaluations = [job for _, job in found.values() if isinstance(job, EvaluateSpec)]
    assert len(evaluations) == 5 == len(found) / 2
    assert all(job.protocol.views == "ten-crop" for job in evaluations)
    shortcuts = {key: job.model.shortcut for key, (_, job) in found.items() if isinstance(job, TrainSpec)}
    assert (shortcuts["resnet-18/seed-0"], shortcuts["resnet-34/seed-0"]) == ("A", "B")


def test_a_transfer_is_from_one_data_set_to_another() -> None:
    found = jobs(spec("transfer", "digits", seeds=[0]))
    data = {key: job.data.dataset for key, (_, job) in found.items() if isinstance(job, TrainSpec)}
    assert data == {
        "resnet-8-source/seed-0": "fashion-mnist", "resnet-8-frozen/seed-0": "digits",
        "resnet-8-tuned/seed-0": "digits", "resnet-8-scratch/seed-0": "digits",
    }  # fmt: skip
    _, frozen = found["resnet-8-frozen/seed-0"]
    assert isinstance(frozen, TrainSpec)
    assert frozen.init is not None
    assert (frozen.init.take, frozen.init.freeze) == ("backbone", True)
    swapped = jobs(spec("transfer", "small", seeds=[0], source="digits", target="fashion-mnist"))
    _, source = swapped["resnet-20-source/seed-0"]
    assert isinstance(source, TrainSpec)
    assert (source.data.dataset, source.data.downscale, source.data.train_limit) == ("digits", 1, None)


@pytest.mark.parametrize(("study", "setting"), PAIRS)
def test_overrides_reach_every_training_and_one_length_drops_the_other(study: str, setting: str) -> None:
    overrides = {"training": {"epochs": 2, "global_batch": 32}, "regularisation": {"label_smoothing": 0.1}}
    for member, job in jobs(spec(study, setting, seeds=[0], overrides=overrides)).values():
        if not isinstance(job, TrainSpec):
            continue
        assert (job.training.global_batch, job.regularisation.label_smoothing) == (32, 0.1)
        if member.role == "training":
            expected = 4 if member.series.endswith("-scratch") and study == "identity" else 2
            assert (job.training.epochs, job.training.steps) == (expected, None)


def test_workers_reach_every_training_and_nothing_else() -> None:
    for member, job in jobs(spec("degradation", seeds=[0], workers=4)).values():
        assert job.scaling.workers == (4 if member.role == "training" else 1)


def test_depths_are_the_studys_or_the_settings() -> None:
    given = expand(spec("depth", depths=[20, 32], seeds=1, readings=False))
    assert [member.series for member in given] == ["resnet-20", "resnet-32"]
    usual = expand(spec("depth", seeds=1, readings=False))
    assert [member.document["model"]["depth"] for member in usual] == list(BENCHES["small"].depths["depth"])


def test_deep_networks_warm_up_where_the_paper_does() -> None:
    for _, job in jobs(spec("degradation", "cifar10", seeds=1)).values():
        if isinstance(job, TrainSpec):
            schedule = job.optim.schedule
            told = (schedule.warmup_lr, schedule.warmup_until_error)
            assert told == ((0.01, 0.8) if job.model.depth >= 110 else (None, None))


def test_a_number_of_seeds_counts_from_0() -> None:
    assert spec("depth", seeds=2).seeds == (0, 1)
    assert spec("depth").seeds == (0, 1, 2)


def test_a_spec_survives_its_own_json() -> None:
    for study, setting in PAIRS:
        found = spec(study, setting, seeds=2, overrides={"training": {"epochs": 2}}, workers=2)
        assert StudySpec.model_validate_json(found.model_dump_json()) == found


def test_what_names_no_sibling_stays_and_is_refused_as_a_job() -> None:
    document = {"init": {"checkpoint": {"job": "@a/seed-0"}}, "note": "@a/seed-0", "all": [{"job": "@b/seed-0"}]}
    assert with_ids(document, {"a/seed-0": "job-x"}) == {
        "init": {"checkpoint": {"job": "job-x"}}, "note": "@a/seed-0", "all": [{"job": "@b/seed-0"}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"study": "dreams"}, "study"),
        ({"study": "depth", "setting": "moon"}, "setting"),
        ({"study": "identity", "setting": "imagenet"}, "has the settings digits, small, fashion-mnist, cifar10"),
        ({"study": "depth", "seeds": []}, "seeds"),
        ({"study": "depth", "seeds": [1, 1]}, "each may be given once"),
        ({"study": "depth", "seeds": [-1]}, "whole numbers from 0"),
        ({"study": "depth", "seeds": 0}, "expected 1 to 32 seeds"),
        ({"study": "depth", "seeds": 33}, "expected 1 to 32 seeds"),
        ({"study": "depth", "seeds": True}, "seeds"),
        ({"study": "depth", "depths": [20, 14]}, "depths must rise"),
        ({"study": "degradation", "depths": [20]}, "compares two depths"),
        ({"study": "identity", "depths": [8, 14, 20]}, "give two"),
        ({"study": "depth", "workers": 0}, "workers"),
        ({"study": "depth", "target": "digits"}, "has one data set"),
        ({"study": "transfer", "setting": "cifar10"}, "both are cifar10; name another"),
        ({"study": "transfer", "target": "fashion-mnist"}, "both are fashion-mnist; name another"),
        ({"study": "shortcuts", "seeds": 32, "depths": [8, 14, 20, 26]}, "1024 jobs; a study has at most 500"),
        ({"study": "depth", "overrides": {"training": 3}}, "training: expected a mapping"),
        ({"study": "depth", "sede": 1}, "Extra inputs"),
    ],
    ids=str,
)
def test_refusals(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        StudySpec.model_validate(fields)
