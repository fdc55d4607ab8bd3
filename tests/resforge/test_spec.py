"""The contract: what is refused and how it is told, what is accepted, and that nothing heavy is imported for it."""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from resforge.networks import IMAGENET_BLOCKS
from resforge.spec import (
    FieldProblem,
    ModelSpec,
    SpecFileError,
    TrainingSpec,
    TrainSpec,
    field_problems,
    parse_job,
    read_document,
)

GOOD: dict[str, Any] = {
    "model": {"family": "cifar", "depth": 20},
    "data": {"dataset": "digits"},
    "training": {"global_batch": 64, "epochs": 12},
}
MISSING = "(missing)"


def document(**changes: Any) -> dict[str, Any]:
    """A good document with fields replaced, by path with double underscores: optim__lr=0.1. MISSING takes one out."""
    result = deepcopy(GOOD)
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = result
        for name in parents:
            inner = inner.setdefault(name, {})
        if value is MISSING:
            del inner[last]
        else:
            inner[last] = value
    return result


def problems(data: Any) -> list[FieldProblem]:
    with pytest.raises(ValidationError) as caught:
        parse_job(data)
    return field_problems(caught.value)


# A bad document, the pointer to what is wrong, and a part of what is said about it.
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    # unknown fields
    ({"epochs": 3}, "/epochs", "unknown field; accepted here: kind, name, recipe, labels,"),
    ({"optim__learning_rate": 0.1}, "/optim/learning_rate", "accepted here: lr, lr_batch, momentum"),
    ({"optim__momentums": 0.1}, "/optim/momentums", "did you mean momentum?"),
    ({"optim__schedule__milestone": []}, "/optim/schedule/milestone", "did you mean milestones?"),
    ({"data__location": "/etc"}, "/data/location", "accepted here: dataset, augment, mean, train_limit"),
    ({"a/b~c": 1}, "/a~1b~0c", "unknown field"),
    # absent fields
    ({"model": MISSING}, "/model", "required: a mapping with the fields family, depth, block"),
    ({"data__dataset": MISSING}, "/data/dataset", "required: The name of a dataset"),
    ({"training__global_batch": MISSING}, "/training/global_batch", "required: Images in one step"),
    # a wrong type
    ({"model": "resnet-20"}, "/model", "expected a mapping with the fields family, depth, block"),
    ({"training": [1]}, "/training", "expected a mapping with the fields global_batch, epochs, steps"),
    ({"model__depth": "deep"}, "/model/depth", "valid integer"),
    ({"model__depth": 20.5}, "/model/depth", "valid integer"),
    ({"training__epochs": True}, "/training/epochs", "expected a number, not true or false"),
    ({"optim__lr": False}, "/optim/lr", "expected a number, not true or false"),
    ({"optim__nesterov": "perhaps"}, "/optim/nesterov", "valid boolean"),
    ({"optim__lr": None}, "/optim/lr", "valid number"),
    ({"optim__lr": {"start": 0.1}}, "/optim/lr", "valid number"),
    ({"labels": ["a"]}, "/labels", "valid dictionary"),
    ({"labels": {"team": 5}}, "/labels/team", "valid string"),
    ({"data__augment__scale": [256]}, "/data/augment/scale/1", "required"),
    ({"kind": "paint"}, "/kind", "expected one of train, evaluate, analyse, ingest"),
    # numbers out of range, and none at all
    ({"optim__lr": float("nan")}, "/optim/lr", "finite number"),
    ({"optim__weight_decay": float("inf")}, "/optim/weight_decay", "finite number"),
    ({"optim__lr": 0}, "/optim/lr", "greater than 0"),
    ({"optim__momentum": 1}, "/optim/momentum", "less than 1"),
    ({"training__seed": -1}, "/training/seed", "greater than or equal to 0"),
    ({"training__seed": 2**32}, "/training/seed", "less than 4294967296"),
    ({"training__global_batch": 0}, "/training/global_batch", "greater than or equal to 1"),
    ({"scaling__workers": 0}, "/scaling/workers", "greater than or equal to 1"),
    ({"scaling__gpus_per_worker": 2}, "/scaling/gpus_per_worker", "less than or equal to 1"),
    ({"checkpoint__keep_last": 0}, "/checkpoint/keep_last", "greater than or equal to 1"),
    ({"data__train_limit": 0}, "/data/train_limit", "greater than or equal to 1"),
    ({"retry__errors": -1}, "/retry/errors", "greater than or equal to 0"),
    # networks that do not exist
    ({"model__family": "vgg"}, "/model/depth", "a vgg network has 11, 13, 16, 19 layers, not 20"),
    ({"model__family": "lenet"}, "/model/family", "'cifar', 'imagenet' or 'vgg'"),
    ({"model__depth": 21}, "/model/depth", "6n+2 layers with n >= 1, and 21 is not; the nearest are 20 and 26"),
    ({"model__depth": 2}, "/model/depth", "the nearest are 8 and 14"),
    ({"model__depth": -40}, "/model/depth", "the nearest are 8 and 14"),
    ({"model": {"family": "imagenet", "depth": 20}}, "/model/depth", "has 18, 34, 50, 101, 152, 200 layers, not 20"),
    ({"model__variant": "v1.5"}, "/model/variant", "no bottleneck; v1 is accepted"),
    ({"model": {"family": "imagenet", "depth": 34, "variant": "v1.5"}}, "/model/variant", "v1 is accepted"),
    ({"model__shortcut": "D"}, "/model/shortcut", "'none', 'A', 'B', 'C', 'scaling'"),
    ({"model__width": 0}, "/model/width", "greater than or equal to 1"),
    # fields that do not go together
    ({"scaling__workers": 3}, "/training/global_batch", "does not divide over 3 workers; the nearest that do: 63, 66"),
    ({"scaling__workers": 100}, "/training/global_batch", "the nearest that do: 100"),
    ({"training__steps": 100}, "/training/epochs", "exactly one of epochs and steps"),
    ({"training__epochs": None}, "/training/steps", "exactly one of epochs and steps"),
    ({"data__augment__scale": [480, 256]}, "/data/augment/scale", "1 <= least <= most"),
    ({"regularisation__mixup": -1}, "/regularisation/mixup", "greater than or equal to 0"),
    ({"regularisation__cutmix": True}, "/regularisation/cutmix", "expected a number, not true or false"),
    ({"regularisation__ema": 1}, "/regularisation/ema", "less than 1"),
    ({"training__gradient_compression": "bf16"}, "/training/gradient_compression", "without scaling.gpus_per_worker"),
    ({"training__progressive_from": 7}, "/training/progressive_from", "images of 8x8 pixels or more, not 7"),
    (
        {"model": {"family": "imagenet", "depth": 18}, "training__progressive_from": 31},
        "/training/progressive_from",
        "the network can't begin at 31 pixels: the imagenet family takes images of 32x32 pixels or more",
    ),
    ({"data__augment__colour": -0.1}, "/data/augment/colour", "greater than or equal to 0"),
    ({"optim__schedule__milestones": [0.75, 0.5]}, "/optim/schedule/milestones", "rising fractions"),
    ({"optim__schedule__milestones": [0.5, 0.5]}, "/optim/schedule/milestones", "rising fractions"),
    (
        {"optim__schedule": {"kind": "plateau", "milestones": [0.5]}},
        "/optim/schedule/milestones",
        "does not go with kind plateau; leave it out, or give kind: step",
    ),
    ({"optim__schedule": {"patience": 3}}, "/optim/schedule/patience", "leave it out, or give kind: plateau"),
    ({"optim__schedule": {"kind": "cosine", "threshold": 0.1}}, "/optim/schedule/threshold", "not go with kind cosine"),
    ({"optim__schedule": {"kind": "constant", "min_lr": 0.1}}, "/optim/schedule/min_lr", "not go with kind constant"),
    ({"optim__schedule": {"kind": "plateau", "min_lr": 0.1}}, "/optim/schedule/min_lr", "the rate that they begin at"),
    ({"optim__schedule": {"warmup_until_error": 0.8}}, "/optim/schedule/warmup_until_error", "needs warmup_lr"),
    ({"optim__schedule": {"warmup_steps": 5, "warmup_epochs": 1}}, "/optim/schedule/warmup_epochs", "not both"),
    (
        {"optim": {"lr_batch": 1024, "schedule": {"kind": "plateau", "min_lr": 0.05}}},
        "/optim/schedule/min_lr",
        "the rate that they begin at, 0.00625, which is optim.lr scaled to the batch",
    ),
    ({"optim__lr_batch": 0}, "/optim/lr_batch", "greater than or equal to 1"),
    ({"data__augment": {"area": [0.5, 0.1]}}, "/data/augment/area", "[least, most]"),
    ({"data__augment": {"area": [0.1, 1.5]}}, "/data/augment/area", "most <= 1"),
    ({"data__augment": {"area": [0.1, 1], "scale": [256, 480]}}, "/data/augment/area", "area and scale"),
    ({"data__augment": {"area": [0.1, 1], "pad": 4}}, "/data/augment/area", "area and pad"),
    (
        {"optim__schedule": {"warmup_until_error": 80, "warmup_lr": 0.01}},
        "/optim/schedule/warmup_until_error",
        "less than 1",
    ),
    ({"optim__schedule__milestones": [32000]}, "/optim/schedule/milestones", "each above 0 and below 1"),
    ({"optim": {"nesterov": True, "momentum": 0}}, "/optim/nesterov", "a momentum above 0"),
    # names
    ({"name": "My Run"}, "/name", "1 to 63 lower-case letters, digits and inner - . _ /"),
    ({"name": "a" * 64}, "/name", "1 to 63 lower-case letters"),
    ({"data__dataset": "s3://bucket/x"}, "/data/dataset", "1 to 63 lower-case letters"),
    ({"data__dataset": "/etc/passwd"}, "/data/dataset", "1 to 63 lower-case letters"),
    ({"labels": {"bad key": "x"}}, "/labels/bad key", "the key: expected 1 to 63 letters"),
    ({"labels": {"team": "x" * 64}}, "/labels/team", "at most 63 characters"),
    ({"labels": {f"label{number}": "x" for number in range(33)}}, "/labels", "at most 32 items"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "pointer", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_refusals_say_where_and_what_is_accepted(changes: dict[str, Any], pointer: str, message: str) -> None:
    found = problems(document(**changes))
    assert [problem.pointer for problem in found] == [pointer]
    assert message in found[0].message


def test_every_bad_field_is_told_at_once() -> None:
    bad = document(model__depth=21, optim__lr=-1, training__epochs=0, scaling__worker=2, name="Bad Name")
    assert {problem.pointer for problem in problems(bad)} == {
        "/model/depth", "/optim/lr", "/training/epochs", "/scaling/worker", "/name",
    }  # fmt: skip


@pytest.mark.parametrize("data", [None, 5, "train", [GOOD]])
def test_what_is_no_mapping_is_refused_as_a_whole(data: Any) -> None:
    (problem,) = problems(data)
    assert problem.pointer == ""
    assert problem.message.startswith("expected a mapping with the fields kind, name,")


def test_what_was_given_is_told_and_kept_short() -> None:
    assert problems(document(model__depth=21))[0].given == "21"
    assert problems(document(model__family="lenet"))[0].given == '"lenet"'
    assert problems(document(data__dataset=MISSING))[0].given is None
    given = problems(document(name="X" * 10_000))[0].given
    assert given is not None
    assert len(given) == 80


# What is accepted.


def test_defaults_are_the_papers() -> None:
    spec = TrainSpec.model_validate(GOOD)
    assert (spec.model.shortcut, spec.model.width, spec.model.variant) == ("A", 16, "v1")
    assert (spec.optim.lr, spec.optim.momentum, spec.optim.weight_decay) == (0.1, 0.9, 1e-4)
    assert spec.data.mean == "pixel"
    imagenet = ModelSpec.model_validate({"family": "imagenet", "depth": 50})
    assert (imagenet.shortcut, imagenet.width) == ("B", 64)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"family": "cifar", "depth": 20}, "cifar/resnet-20"),
        ({"family": "cifar", "depth": 56, "shortcut": "none"}, "cifar/plain-56"),
        ({"family": "cifar", "depth": 20, "shortcut": "B"}, "cifar/resnet-20-B"),
        ({"family": "imagenet", "depth": 50}, "imagenet/resnet-50"),
        ({"family": "imagenet", "depth": 50, "variant": "v1.5"}, "imagenet/resnet-50-v1.5"),
        ({"family": "imagenet", "depth": 34, "shortcut": "A"}, "imagenet/resnet-34-A"),
    ],
)
def test_names_of_networks(fields: dict[str, Any], name: str) -> None:
    assert ModelSpec.model_validate(fields).name == name


def test_schedules_that_were_accepted_still_are() -> None:
    """A cosine has no milestones, and specs that gave them are kept in object storage."""
    old = {"kind": "cosine", "milestones": [0.2], "gamma": 0.5, "warmup_steps": 3, "warmup_lr": 0.01}
    schedule = TrainSpec.model_validate(document(optim__schedule=old)).optim.schedule
    assert {name: getattr(schedule, name) for name in old} == {**old, "milestones": (0.2,)}
    assert schedule.warmup_until_error is None


def test_lengths_in_steps() -> None:
    assert TrainingSpec(global_batch=64, epochs=3).total_steps(22) == 66
    assert TrainingSpec(global_batch=64, steps=100).total_steps(22) == 100


def test_the_schema_asks_only_for_what_has_no_default() -> None:
    schema = TrainSpec.model_json_schema()
    assert schema["required"] == ["model", "data", "training"]
    required = {name: part.get("required", []) for name, part in schema["$defs"].items()}
    assert {name: fields for name, fields in required.items() if fields} == {
        "CheckpointRef": ["job"],
        "InitSpec": ["checkpoint"],
        "ModelSpec": ["family", "depth"],
        "DataSpec": ["dataset"],
        "TrainingSpec": ["global_batch"],
    }
    for part in (schema, *schema["$defs"].values()):
        assert part["additionalProperties"] is False


def test_a_spec_is_frozen() -> None:
    spec = TrainSpec.model_validate(GOOD)
    with pytest.raises(ValidationError, match="frozen"):
        spec.name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        spec.optim.lr = 1.0  # type: ignore[misc]


names = st.from_regex(r"[a-z0-9]([-a-z0-9._/]{0,10}[a-z0-9])?", fullmatch=True)
positive = st.floats(1e-6, 1000, exclude_max=True)


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    family = draw(st.sampled_from(["cifar", "imagenet"]))
    depth = 6 * draw(st.integers(1, 200)) + 2 if family == "cifar" else draw(st.sampled_from(list(IMAGENET_BLOCKS)))
    variants = ["v1", "v1.5"] if family == "imagenet" and depth >= 50 else ["v1"]
    fields = {"family": family, "depth": depth}
    optional = {
        "shortcut": st.sampled_from(["none", "A", "B", "C"]),
        "variant": st.sampled_from(variants),
        "width": st.integers(1, 1024),
    }
    return {**fields, **draw(st.fixed_dictionaries({}, optional=optional))}


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Documents of jobs that are accepted."""
    workers = draw(st.integers(1, 64))
    length = draw(st.sampled_from(["epochs", "steps"]))
    scale = st.tuples(st.integers(1, 500), st.integers(0, 500)).map(lambda pair: [pair[0], sum(pair)])
    milestones = st.sets(st.floats(0, 1, exclude_min=True, exclude_max=True), max_size=3).map(sorted)
    return {
        "model": draw(models()),
        "data": {
            "dataset": draw(names),
            **draw(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "augment": st.fixed_dictionaries(
                            {}, optional={"pad": st.integers(0, 64), "flip": st.booleans(), "scale": st.none() | scale}
                        ),
                        "mean": st.sampled_from(["pixel", "channel"]),
                        "train_limit": st.none() | st.integers(1),
                    },
                )
            ),
        },
        "training": {
            "global_batch": workers * draw(st.integers(1, 1000)),
            length: draw(st.integers(1)),
            "seed": draw(st.integers(0, 2**32 - 1)),
        },
        "scaling": {"workers": workers, "cpus_per_worker": draw(positive)},
        **draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "name": st.none() | names,
                    "labels": st.dictionaries(names, st.from_regex(r"[ -~]{0,63}", fullmatch=True), max_size=4),
                    "optim": st.fixed_dictionaries(
                        {},
                        optional={
                            "lr": positive,
                            "nesterov": st.booleans(),
                            "clip_norm": st.none() | positive,
                            "schedule": st.fixed_dictionaries({}, optional={"milestones": milestones}),
                        },
                    ),
                },
            )
        ),
    }


@settings(deadline=None)
@given(documents())
def test_a_spec_survives_being_written_and_read(data: dict[str, Any]) -> None:
    spec = TrainSpec.model_validate(data)
    assert TrainSpec.model_validate_json(spec.model_dump_json()) == spec
    assert TrainSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert TrainSpec.model_validate(spec.model_dump()) == spec


@settings(deadline=None, max_examples=50)
@given(data=documents(), indent=st.sampled_from([None, 2, "\t"]))
def test_json_and_yaml_are_read_alike(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any], indent: Any
) -> None:
    folder = tmp_path_factory.mktemp("documents")
    (folder / "job.json").write_text(json.dumps(data, indent=indent), encoding="utf-8")
    (folder / "job.yaml").write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    specs = [TrainSpec.model_validate(read_document(folder / name)) for name in ("job.json", "job.yaml")]
    assert specs == [TrainSpec.model_validate(data)] * 2


def test_numbers_in_exponents_are_numbers_in_both(tmp_path: Path) -> None:
    """YAML 1.1 takes 1e-4 for a string; the spec takes it for the number that it was meant to be."""
    for name, text in (("a.json", '{"lr": 1e-4}'), ("a.yaml", "lr: 1e-4")):
        (tmp_path / name).write_text(text)
        spec = TrainSpec.model_validate({**GOOD, "optim": read_document(tmp_path / name)})
        assert spec.optim.lr == 1e-4


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"a: [1", "could not be read as a job"),
        (b"", "expected a mapping with the fields of a job, found NoneType"),
        (b"- 1\n- 2", "expected a mapping with the fields of a job, found list"),
        (b'"text"', "expected a mapping with the fields of a job, found str"),
        (b"\xff\xfe\x00", "codec can't decode"),
        (b"a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
    ],
)
def test_files_that_are_no_documents_are_refused(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(data)
    with pytest.raises(SpecFileError) as caught:
        read_document(path)
    assert str(path) in str(caught.value)
    assert problem in str(caught.value)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecFileError, match=r"nowhere\.yaml could not be read as a job: .*No such file"):
        read_document(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    "module", ["resforge", "resforge.spec", "resforge.recipes", "resforge.jobs", "resforge.storage"]
)
def test_the_contract_imports_nothing_heavy(module: str) -> None:
    """Well under 0.3 s: told by what is imported, since a clock on a busy machine tells little."""
    program = f"import {module}, sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    imported = set(done.stdout.split())
    assert "resforge" in imported
    heavy = {
        "torch",
        "numpy",
        "ray",
        "lightning",
        "fastapi",
        "starlette",
        "sqlalchemy",
        "boto3",
        "botocore",
        "rich",
        "httpx",
    }
    assert not imported & heavy


def test_a_landscape_has_the_network_in_its_middle() -> None:
    document = {"kind": "analyse", "checkpoint": {"job": "job-aaaaaaaaaaaa"}}
    even, odd = ({**document, "reading": {"name": "landscape", "points": points}} for points in (4, 5))
    with pytest.raises(ValidationError, match="an odd number, so that the network itself is in the middle"):
        parse_job(even)
    assert parse_job(odd).kind == "analyse"
