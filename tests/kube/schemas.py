"""What an API server refuses of a RayJob: what its CRD's schema forbids, where the CRDs are at hand, and what KubeRay's
operator would not take. Without the CRDs a small check of our own stands in for the schema."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import jsonschema
import yaml

from tests.system_packages import CRDS as CRDS_FOLDER

CRDS = CRDS_FOLDER.path()
needs_crds = CRDS_FOLDER.mark

_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")


@cache
def crd_schema(file: str, version: str) -> dict[str, Any]:
    """The OpenAPI schema of a version of a CRD."""
    assert CRDS is not None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document = yaml.load((CRDS / file).read_text(), Loader=loader)
    schema: dict[str, Any] = next(
        item["schema"]["openAPIV3Schema"] for item in document["spec"]["versions"] if item["name"] == version
    )
    return schema


def schema_problems(schema: dict[str, Any], manifest: Mapping[str, Any]) -> list[str]:
    """What the schema says against a manifest, unknown fields included, as `fieldValidation: Strict` has it."""
    validator = jsonschema.Draft202012Validator(schema)
    wrong = [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(manifest)]
    return wrong + [f'unknown field "{path}"' for path in _unknown(schema, manifest, "")]


def problems(plural: str, new: Mapping[str, Any], old: Mapping[str, Any] | None = None) -> list[str]:
    """What speaks against a new object, or against what has changed in one."""
    files = {"rayjobs": ("ray.io_rayjobs.yaml", "v1"), "workloads": ("kueue.x-k8s.io_workloads.yaml", "v1beta2")}
    if plural not in files:
        return []
    spec_changed = old is None or any(
        old.get(part) != new.get(part) for part in new.keys() | old.keys() if part not in ("status", "metadata")
    )
    if spec_changed and plural == "rayjobs":
        return rayjob_problems(new)
    if not CRDS:
        return []
    schema = crd_schema(*files[plural])
    if spec_changed:
        return schema_problems(schema, new)
    return [f"status.{problem}" for problem in schema_problems(schema["properties"]["status"], new.get("status") or {})]


def rayjob_problems(manifest: Mapping[str, Any]) -> list[str]:
    """Everything that speaks against a RayJob."""
    metadata, spec = manifest.get("metadata", {}), manifest.get("spec", {})
    problems = schema_problems(crd_schema("ray.io_rayjobs.yaml", "v1"), manifest) if CRDS else list(_built_in(manifest))
    name = metadata.get("name", "")
    if len(name) > 47 or not _DNS_1035.fullmatch(name):
        problems.append(f"metadata.name: {name!r} is no DNS-1035 name of at most 47 characters")
    problems += [
        f"metadata.labels.{key}: {value!r} is no label's value"
        for key, value in metadata.get("labels", {}).items()
        if not _LABEL.fullmatch(value)
    ]
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        problems.append("spec: a RayJob with shutdownAfterJobFinishes set to false is not allowed to be suspended")
    if spec.get("submissionMode", "K8sJobMode") not in _MODES:
        problems.append(f"spec.submissionMode: {spec['submissionMode']!r} is none of {', '.join(_MODES)}")
    if len(spec.get("rayClusterSpec", {}).get("workerGroupSpecs", ())) > 7:
        problems.append("spec.rayClusterSpec.workerGroupSpecs: Kueue takes at most 7")
    for container in (item for pod in pod_specs(manifest) for item in pod["containers"]):
        for resource, limit in container["resources"]["limits"].items():
            if "." in resource and not limit.isdigit():
                problems.append(f"{resource}: {limit!r} must be a whole number")
    return problems


def pod_specs(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pod specs of a RayJob: the head's first."""
    cluster = manifest["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())]
    return [group["template"]["spec"] for group in groups]


def _built_in(manifest: Mapping[str, Any]) -> Iterator[str]:
    if manifest.get("apiVersion") != "ray.io/v1" or manifest.get("kind") != "RayJob":
        yield "apiVersion and kind are not those of a RayJob"
    cluster = manifest.get("spec", {}).get("rayClusterSpec", {})
    groups = [cluster.get("headGroupSpec", {}), *cluster.get("workerGroupSpecs", ())]
    for group in groups:
        if not group.get("template", {}).get("spec", {}).get("containers"):
            yield "a group has no containers"
        if any(not isinstance(value, str) for value in group.get("rayStartParams", {}).values()):
            yield "rayStartParams must be text"
    for group in groups[1:]:
        if not {"groupName", "minReplicas", "maxReplicas"} <= group.keys():
            yield "a worker group needs groupName, minReplicas and maxReplicas"


def _unknown(schema: Mapping[str, Any], value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown(schema.get("items", {}), item, f"{path}[{index}]")
    if not isinstance(value, dict):
        return
    known, more = schema.get("properties"), schema.get("additionalProperties")
    for key, item in value.items():
        place = f"{path}.{key}" if path else key
        if known and key in known:
            yield from _unknown(known[key], item, place)
        elif isinstance(more, dict):
            yield from _unknown(more, item, place)
        elif known and not schema.get("x-kubernetes-preserve-unknown-fields") and not more:
            yield place
