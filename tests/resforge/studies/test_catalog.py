"""Every study in every setting is made of jobs that can run."""

from typing import Any

import pytest
from pydantic import ValidationError

from resforge.spec import TrainSpec, parse_job
from resforge.studies import SETTINGS, STUDIES, StudySpec, expand
from resforge.studies.catalog import with_ids


def spec(**fields: Any) -> StudySpec:
    return StudySpec.model_validate(fields)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("study", STUDIES)
def test_every_member_is_a_job_behind_those_that_it_builds_upon(study: str, setting: str) -> None:
    members = expand(spec(study=study, setting=setting, seeds=[3, 5]))
    keys = [member.key for member in members]
    assert len(set(keys)) == len(keys)
    ids: dict[str, str] = {}
    for index, member in enumerate(members):
        # A reference to a later member, or to none, is a KeyError here.
        job = parse_job(with_ids(member.document, ids))
        assert isinstance(job, TrainSpec)
        assert job.training.seed == member.seed
        ids[member.key] = f"job-{'abcdefghijklmnopqrstuvwxyz'[index % 26] * 12}"
    by_seed = {seed: [m.series for m in members if m.seed == seed] for seed in (3, 5)}
    assert by_seed[3] == by_seed[5]


def test_degradation_compares_plain_and_residual_by_depth() -> None:
    members = expand(spec(study="degradation", setting="small"))
    assert {member.series for member in members} == {"plain-20", "plain-56", "resnet-20", "resnet-56"}
    assert len(members) == 12
    job = parse_job(members[0].document)
    assert isinstance(job, TrainSpec)
    assert (job.data.downscale, job.data.train_limit, job.model.width, job.training.epochs) == (2, 10_000, 8, 6)
    assert job.training.evaluate_train


def test_identity_grows_the_shallow_network_of_the_same_seed() -> None:
    members = {member.key: member for member in expand(spec(study="identity", setting="digits", seeds=[7]))}
    init = members["resnet-14-grown/seed-7"].document["init"]
    assert init == {"checkpoint": {"job": "@resnet-8/seed-7", "which": "latest"}, "take": "grow"}
    assert "init" not in members["plain-14-scratch/seed-7"].document


def test_overrides_reach_every_training_and_one_length_drops_the_other() -> None:
    for member in expand(spec(study="transfer", setting="cifar10", overrides={"training": {"epochs": 2}})):
        job = parse_job(with_ids(member.document, {f"resnet-20-source/seed-{s}": "job-aaaaaaaaaaaa" for s in range(3)}))
        assert isinstance(job, TrainSpec)
        assert (job.training.epochs, job.training.steps) == (2, None)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"study": "dreams"}, "study"),
        ({"study": "depth", "setting": "moon"}, "setting"),
        ({"study": "depth", "seeds": []}, "seeds"),
        ({"study": "depth", "seeds": [1, 1]}, "each seed may be given once"),
        ({"study": "depth", "depths": [20, 14]}, "depths must rise"),
        ({"study": "degradation", "depths": [20]}, "compares two depths"),
        ({"study": "depth", "sede": 1}, "Extra inputs"),
    ],
)
def test_refusals(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        spec(**fields)
