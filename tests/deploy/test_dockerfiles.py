"""The images: pinned, not root, healthy; and, where asked for, that they build and do what they are for."""

import json
import os
import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

import resforge
from services.settings import Settings
from tests.system_packages import BUILDAH, PODMAN, RUNC
from trainer.settings import TrainerSettings

ROOT = Path(__file__).parents[2]
FILES = ["services", "trainer"]
KNOWN = {
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN", "SHELL", "USER",
    "VOLUME", "WORKDIR",
}  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """One instruction, its continued lines joined."""

    name: str
    words: str


def instructions(text: str) -> list[Instruction]:
    """What a Dockerfile says; raises ValueError where it can't be read."""
    found: list[Instruction] = []
    pending = ""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue  # a comment, also one between continued lines
        pending += line.rstrip().removesuffix("\\")
        if line.rstrip().endswith("\\"):
            continue
        name, _, words = pending.strip().partition(" ")
        if name not in KNOWN or not words.strip():
            raise ValueError(f"line {number}: {pending!r} is no instruction")
        found.append(Instruction(name, words.strip()))
        pending = ""
    if pending:
        raise ValueError("the last instruction goes on after the file's end")
    return found


def stages(name: str) -> list[list[Instruction]]:
    """The instructions of each stage, those before the first left out."""
    parts: list[list[Instruction]] = []
    for instruction in instructions((ROOT / f"deploy/docker/{name}.Dockerfile").read_text()):
        if instruction.name == "FROM":
            parts.append([])
        if parts:
            parts[-1].append(instruction)
    return parts


def said(stage: list[Instruction], name: str) -> list[str]:
    return [item.words for item in stage if item.name == name]


@pytest.mark.parametrize("text", ["RUNN true", "RUN true \\\n", "FROM", "COPY --from=build"[:4]])
def test_what_is_no_dockerfile_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="instruction"):
        instructions(text)


@pytest.mark.parametrize("name", FILES)
def test_the_base_is_an_argument_with_a_pinned_default(name: str) -> None:
    everything = instructions((ROOT / f"deploy/docker/{name}.Dockerfile").read_text())
    assert everything[0].name == "ARG"
    base = re.fullmatch(r"BASE=(\S+):(\S+)", everything[0].words)
    assert base is not None
    assert re.match(r"3\.\d+\.\d+-", base[2])
    assert [words.split()[0] for words in (item.words for item in everything if item.name == "FROM")] == ["${BASE}"] * 2
    assert ":latest" not in " ".join(item.words for item in everything)


@pytest.mark.parametrize("name", FILES)
def test_the_base_has_the_python_that_is_tested(name: str) -> None:
    [words] = [i.words for i in instructions((ROOT / f"deploy/docker/{name}.Dockerfile").read_text())][:1]
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert f"python:{oldest}." in words


@pytest.mark.parametrize("name", FILES)
def test_it_is_built_in_two_stages_and_ends_as_a_user_that_is_not_root(name: str) -> None:
    build, final = stages(name)
    assert re.search(r" AS build$", build[0].words)
    assert any(words.startswith("--from=build ") for words in said(final, "COPY"))
    assert said(final, "USER") == ["1000:1000"]
    after = final[[item.name for item in final].index("USER") :]
    assert not [item for item in after if item.name in ("RUN", "COPY", "ADD")]
    assert not said(final, "ADD")
    assert not said(build, "ADD")


@pytest.mark.parametrize("name", FILES)
def test_it_has_a_health_check_labels_and_a_command(name: str) -> None:
    _, final = stages(name)
    [check] = said(final, "HEALTHCHECK")
    assert json.loads(check.partition("CMD ")[2])
    labels = " ".join(said(final, "LABEL"))
    for label in ("title", "description", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in labels
    assert f"VERSION={resforge.__version__}" in said(final, "ARG")
    assert all(json.loads(words) for words in said(final, "CMD") + said(final, "ENTRYPOINT"))


@pytest.mark.parametrize("name", FILES)
def test_every_install_is_held_to_the_constraints(name: str) -> None:
    installs = [part for stage in stages(name) for words in said(stage, "RUN")
                for part in re.split(r"&&|;;", words) if "pip install" in part]  # fmt: skip
    assert installs
    for part in installs:
        assert "-c constraints.txt" in part or "grep '^torch==' constraints.txt" in part
        assert "--no-cache-dir" in part


@pytest.mark.parametrize("name", FILES)
def test_settings_in_the_image_are_ours(name: str) -> None:
    known = {f"RESFORGE_{field.upper()}" for field in Settings.model_fields}
    known.add("RESFORGE_SCRATCH")
    assert TrainerSettings.from_environment({"RESFORGE_SCRATCH": "/x"}).scratch == Path("/x")
    _, final = stages(name)
    assert set(re.findall(r"\b(RESFORGE_\w+)=", " ".join(said(final, "ENV")))) <= known


def test_what_is_copied_is_let_through_by_dockerignore() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    for name in FILES:
        for words in said(stages(name)[0], "COPY"):
            for source in words.split()[:-1]:
                assert source in let_through
                assert (ROOT / source).exists()


# ---- built and run: `make images`

BASE = os.environ.get("BASE", "docker.io/library/python:3.11.14-slim-bookworm")
# Folders and files that builds see, as -v takes them: certificates, a pip.conf, wheels. Separated by spaces.
MOUNTS = os.environ.get("BUILD_MOUNTS", "").split()


def build(name: str, *arguments: str) -> str:
    tag = f"localhost/resforge-test-{name}:latest"
    mounts = [word for mount in MOUNTS for word in ("-v", mount)]
    command = ["buildah", "bud", "--isolation=chroot", "--format", "docker", "--layers", "--build-arg", f"BASE={BASE}"]
    command += [*mounts, *arguments, "-f", f"deploy/docker/{name}.Dockerfile", "-t", tag, "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return tag


def run(image: str, *command: str, entrypoint: str | None = None) -> str:
    """Run it as in production: not root, on a read-only root file system, without capabilities."""
    arguments = [
        "podman", "--runtime", "runc", "run", "--rm", "--network=host", "--read-only", "--tmpfs", "/tmp:mode=1777,exec",
        "--cap-drop=ALL", "--security-opt=no-new-privileges", "--ulimit", "nofile=1024:1024", "--ulimit",
        "nproc=1024:1024", *(["--entrypoint", entrypoint] if entrypoint else []), image, *command,
    ]  # fmt: skip
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.images
@pytest.mark.timeout(2400)
@BUILDAH.mark
@PODMAN.mark
@RUNC.mark
def test_the_services_image_builds_and_migrates() -> None:
    image = build("services")
    script = (
        "id -u && export RESFORGE_DATABASE_URL=sqlite:////tmp/r.db RESFORGE_S3_BUCKET=resforge"
        " && python -m services migrate && python -m services project create demo && python -m services datasets list"
    )
    told = run(image, "-ec", script, entrypoint="sh")
    assert told.startswith("1000\n")
    assert "digits" in told
    without = "import importlib.util as u; print([n for n in ('torch', 'ray', 'pip') if u.find_spec(n)])"
    assert run(image, "-c", without, entrypoint="python").strip() == "[]"


@pytest.mark.images
@pytest.mark.timeout(2400)
@BUILDAH.mark
@PODMAN.mark
@RUNC.mark
def test_the_trainer_image_builds_and_trains() -> None:
    index = os.environ.get("CPU_INDEX")
    image = build("trainer", "--build-arg", "DEVICE=cpu", *(["--build-arg", f"CPU_INDEX={index}"] if index else []))
    script = (
        "import os, torch, ray, lightning; from resforge.spec import ModelSpec; from trainer.models import build;"
        "from trainer.data.decode import NATIVE;"
        "n = build(ModelSpec(family='cifar', depth=20).network(channels=3, classes=10, image_size=32));"
        "n(torch.zeros(2, 3, 32, 32)).sum().backward(); print(os.getuid(), ray.__version__, NATIVE)"
    )
    assert run(image, "python", "-c", script).split() == ["1000", "2.60.0", "True"]
    found = run(image, "bash", "-c", "type -P bash wget ray").split()
    assert [Path(path).name for path in found] == ["bash", "wget", "ray"]


@pytest.mark.images
@pytest.mark.timeout(600)
@BUILDAH.mark
def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(AssertionError, match="DEVICE is 'tpu'; accepted are cuda and cpu"):
        build("trainer", "--build-arg", "DEVICE=tpu")
