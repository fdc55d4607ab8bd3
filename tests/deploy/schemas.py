"""What objects are held against: Kubernetes' own schemas, and those of custom resources."""

import json
from functools import cache
from typing import Any

import jsonschema
import kubernetes_validate

from tests.kube.schemas import CRDS, crd_schema, schema_problems

KUBERNETES = "1.34"
Object = dict[str, Any]

# KubeRay's, Kueue's and the Prometheus operator's lie in a folder. The Gateway API's is not among them: this is what
# version 1 says of the fields that we use.
_NAME = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
HTTP_ROUTE = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "gateway.networking.k8s.io/v1"},
        "kind": {"const": "HTTPRoute"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "parentRefs": {
                    "type": "array",
                    "maxItems": 32,
                    "items": {
                        "type": "object",
                        "required": ["name"],
                        "additionalProperties": False,
                        "properties": {"name": _NAME, "namespace": _NAME, "sectionName": _NAME},
                    },
                },
                "hostnames": {"type": "array", "maxItems": 16, "items": {"type": "string"}},
                "rules": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 16,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "matches": {
                                "type": "array",
                                "maxItems": 64,
                                "items": {
                                    "type": "object",
                                    "additionalProperties": False,
                                    "properties": {
                                        "path": {
                                            "type": "object",
                                            "additionalProperties": False,
                                            "properties": {
                                                "type": {"enum": ["Exact", "PathPrefix", "RegularExpression"]},
                                                "value": {"type": "string", "pattern": "^/"},
                                            },
                                        }
                                    },
                                },
                            },
                            "timeouts": {
                                "type": "object",
                                "additionalProperties": False,
                                "properties": {
                                    "request": {"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
                                },
                            },
                            "backendRefs": {
                                "type": "array",
                                "items": {
                                    "type": "object",
                                    "required": ["name", "port"],
                                    "additionalProperties": False,
                                    "properties": {"name": _NAME, "port": _PORT},
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


@cache
def _kubernetes(item: str) -> None:
    """Objects that sets of values have in common are looked at once: each look reads all of the schemas."""
    kubernetes_validate.validate(json.loads(item), KUBERNETES, strict=True)


class Invalid(Exception):
    """The API server would refuse the object, or drop a field of it."""


def validate(item: Object) -> None:
    """Hold an object against its schema.

    Raises:
        Invalid: with all that is wrong, and where.
    """
    group, _, version = item["apiVersion"].rpartition("/")
    file = f"{group}_{item['kind'].lower()}s.yaml"
    try:
        if group == "gateway.networking.k8s.io":
            jsonschema.Draft202012Validator(HTTP_ROUTE).validate(item)
        elif CRDS and (CRDS / file).exists():
            if problems := schema_problems(crd_schema(file, version), item):
                raise Invalid("; ".join(problems))
        else:  # what it does not know, it refuses
            _kubernetes(json.dumps(item))
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        raise Invalid(str(error)) from error
