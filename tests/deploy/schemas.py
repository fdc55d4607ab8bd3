"""What objects are held against: Kubernetes' own schemas, and those of custom resources."""

import functools
import os
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

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


class NoSchema(Exception):
    """Nothing is known to hold an object against."""


def crds() -> Path:
    """The folder of custom resource definitions; without one, the test is skipped."""
    folder = os.environ.get("RESFORGE_CRDS")
    if not folder:
        pytest.skip("RESFORGE_CRDS names no folder of custom resource definitions")
    return Path(folder)


@functools.cache
def custom(path: Path, version: str) -> jsonschema.Draft202012Validator:
    """What one version of a custom resource is held against."""
    spec = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["spec"]
    for known in spec["versions"]:
        if known["name"] == version and known["served"]:
            return jsonschema.Draft202012Validator(_strict(known["schema"]["openAPIV3Schema"], top=True))
    raise NoSchema(f"{path} serves no version {version}")


def validate(item: Object, folder: Path) -> None:
    """Raise, saying where, if the API server would refuse the object or drop a field of it."""
    group, _, version = item["apiVersion"].rpartition("/")
    path = folder / f"{group}_{item['kind'].lower()}s.yaml"
    if group == "gateway.networking.k8s.io":
        jsonschema.Draft202012Validator(HTTP_ROUTE).validate(item)
    elif path.exists():
        custom(path, version).validate(item)
    else:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)


def _strict(schema: Object, *, top: bool = False) -> Object:
    """A structural schema as JSON Schema that refuses what the API server would silently drop."""
    if schema.get("x-kubernetes-int-or-string"):
        rest = {key: value for key, value in schema.items() if key in ("pattern", "maxLength")}
        return {"type": ["integer", "string"], **rest}
    strict = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-") and key != "nullable"}
    if "properties" in schema:
        properties = {name: _strict(part) for name, part in schema["properties"].items()}
        if top:  # of an embedded object, the API server knows these itself
            properties |= {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
        strict["properties"] = properties
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        strict["additionalProperties"] = _strict(schema["additionalProperties"])
    if isinstance(schema.get("items"), dict):
        strict["items"] = _strict(schema["items"])
    if schema.get("nullable") and "type" in schema:
        strict["type"] = [schema["type"], "null"]
    return strict
