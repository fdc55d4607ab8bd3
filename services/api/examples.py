"""Examples of request bodies for the API's documentation. A test parses each as a JobSpec."""

from typing import Any

from resforge.spec import SPECS

JOBS: dict[str, dict[str, Any]] = {
    "recipe": {
        "summary": "A recipe as it is",
        "value": {"recipe": "digits/resnet-20"},
    },
    "overrides": {
        "summary": "A recipe with some fields overridden",
        "value": {
            "recipe": "digits/resnet-20",
            "name": "digits-two-workers",
            "labels": {"team": "vision"},
            "optim": {"lr": 0.05},
            "training": {"epochs": 6},
            "scaling": {"workers": 2},
        },
    },
    "whole": {
        "summary": "A whole spec of a training",
        "value": {
            "name": "resnet-56-on-fashion",
            "model": {"family": "cifar", "depth": 56},
            "data": {"dataset": "fashion-mnist", "augment": {"pad": 2, "flip": True}},
            "optim": {"lr": 0.1, "weight_decay": 0.0001, "schedule": {"milestones": [0.5, 0.75]}},
            "training": {"global_batch": 128, "steps": 16000},
            "scaling": {"workers": 2},
            "checkpoint": {"every_epochs": 1, "every_steps": 500, "keep_last": 2},
        },
    },
    "ingest": {
        "summary": "Make a data set of shards out of class folders or tars",
        "value": {
            "kind": "ingest",
            "dataset": "imagenet",
            "source": "s3://datasets/imagenet",
            "shorter_side": 256,
            "scaling": {"workers": 8},
        },
    },
}

YAML_JOBS: dict[str, dict[str, Any]] = {
    "recipe": {
        "summary": "A recipe with some fields overridden, as YAML",
        "value": "recipe: digits/resnet-20\nname: digits-two-workers\nscaling:\n  workers: 2\n",
    }
}

STUDIES: dict[str, dict[str, Any]] = {
    "degradation": {
        "summary": "The paper's figure 6 on a laptop",
        "value": {"study": "degradation", "setting": "small", "seeds": [0, 1, 2]},
    },
}

_SCHEMA = {
    "anyOf": [
        *({"$ref": f"#/components/schemas/{name}"} for name in (spec.__name__ for spec in SPECS.values())),
        {
            "type": "object",
            "title": "A recipe with overrides",
            "required": ["recipe"],
            "properties": {"recipe": {"type": "string", "description": "One of GET /v1/recipes."}},
        },
    ]
}

JOB_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {"schema": _SCHEMA, "examples": JOBS},
        "application/yaml": {"schema": _SCHEMA, "examples": YAML_JOBS},
    },
}

STUDY_BODY: dict[str, Any] = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/StudySpec"}, "examples": STUDIES}},
}
