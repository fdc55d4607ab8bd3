"""Without an optional tool tests are collected, and those that need it are skipped and say how to have it."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests import system_packages as packages
from tests.system_packages import ROOT, TOOLS, Tool

# The tests that use each tool, as pytest's arguments.
USERS: dict[Tool, list[str]] = {
    packages.PROMETHEUS: ["tests/e2e/test_monitoring.py"],
    packages.PROMTOOL: ["tests/deploy/test_rules.py"],
    packages.C_COMPILER: ["-k", "native", "tests/trainer/data/test_decode.py"],
    packages.LIBJPEG: ["-k", "native", "tests/trainer/data/test_decode.py"],
    packages.PYTHON_HEADERS: ["-k", "native", "tests/trainer/data/test_decode.py", "tests/trainer/test_compiled.py"],
    packages.NATIVE_DECODER: ["tests/trainer/data/test_decode.py"],
    packages.CXX_COMPILER: ["tests/trainer/test_compiled.py"],
    packages.FASHION_MNIST: [
        "-k", "real or transfer", "tests/trainer/data/test_sets.py", "tests/e2e/test_experiments.py",
    ],
    packages.HELM: ["-m", "not images", "tests/deploy", "tests/services/launchers/test_upgrade.py"],
    packages.CRDS: [
        "-k", "valid or crd or schemas", "tests/deploy/test_chart_objects.py",
        "tests/services/launchers/test_kuberay.py", "tests/services/launchers/test_rayjob.py",
    ],
    packages.BUILDAH: ["-m", "images", "tests/deploy/test_dockerfiles.py"],
    packages.PODMAN: ["-m", "images", "-k", "image_builds", "tests/deploy/test_dockerfiles.py"],
    packages.RUNC: ["-m", "images", "-k", "image_builds", "tests/deploy/test_dockerfiles.py"],
}  # fmt: skip
WITHIN_S = 800  # a tenth of it on a quiet machine
# What the native decoder is built with.
HEADERS = {packages.LIBJPEG: "jpeglib.h", packages.PYTHON_HEADERS: "Python.h"}
BUILT_WITH = (packages.C_COMPILER, *HEADERS)
# How each program may be called.
PROGRAMS = {
    packages.PROMETHEUS: r"prometheus", packages.PROMTOOL: r"promtool", packages.BUILDAH: r"buildah",
    packages.C_COMPILER: r"(.*-)?(cc|gcc|clang)(-[\d.]+)?", packages.CXX_COMPILER: r"(.*-)?(c|g|clang)\+\+(-[\d.]+)?",
    packages.PODMAN: r"podman", packages.RUNC: r"runc", packages.HELM: r"helm",
}  # fmt: skip


def path_without(programs: str, folder: Path) -> str:
    """PATH in which no program's name matches: folders that have such are replaced by links to their others."""
    parts = []
    for number, part in enumerate(os.environ["PATH"].split(os.pathsep)):
        entries = list(os.scandir(part)) if os.path.isdir(part) else []
        if not any(re.fullmatch(programs, entry.name) for entry in entries):
            parts.append(part)
            continue
        links = folder / str(number)
        links.mkdir(parents=True)
        for entry in entries:
            if not re.fullmatch(programs, entry.name):
                (links / entry.name).symlink_to(entry.path)
        parts.append(str(links))
    return os.pathsep.join(parts)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as a clone has it: nothing in it was built."""
    copy = tmp_path_factory.mktemp("clone") / "resforge"
    built = shutil.ignore_patterns(".git", ".venv", ".demo", ".*_cache", ".hypothesis", "__pycache__", "*.so", "build")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=built)
    return copy


def hidden(tools: list[Tool], tree: Path, folder: Path) -> dict[str, str]:
    """An environment that lacks these tools: not in PATH, and not where they are looked up."""
    programs = "|".join(f"({PROGRAMS[tool]})" for tool in tools if tool in PROGRAMS)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTEST_") and name not in ("RESFORGE_FORBID_SKIPS", "RESFORGE_CRDS")
    }
    if packages.CRDS not in tools and (crds := os.environ.get("RESFORGE_CRDS")):
        kept["RESFORGE_CRDS"] = crds
    return kept | {
        "PATH": path_without(programs, folder / "bin") if programs else os.environ["PATH"],
        "PYTHONPATH": str(tree),
        packages.HIDDEN: ",".join(tool.name for tool in tools),
    }


def pytest_without(tools: list[Tool], tree: Path, folder: Path, *arguments: str) -> str:
    """Run pytest where these tools are missing: what it printed.

    Raises:
        AssertionError: a test failed, or could not be set up or collected.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=tree, env=hidden(tools, tree, folder), capture_output=True, text=True, timeout=WITHIN_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.stack
@pytest.mark.timeout(WITHIN_S + 60)
@pytest.mark.parametrize("tool", USERS, ids=lambda tool: tool.name)
def test_without_a_tool_its_tests_are_skipped_and_say_why(tool: Tool, tree: Path, tmp_path: Path) -> None:
    tools = [tool, packages.NATIVE_DECODER] if tool in BUILT_WITH else [tool]
    report = tmp_path / "report.xml"
    pytest_without(tools, tree, tmp_path, f"--junitxml={report}", *USERS[tool])
    [suite] = ElementTree.parse(report).getroot().iter("testsuite")
    assert (suite.get("errors"), suite.get("failures")) == ("0", "0")
    skipped = [element.get("message", "") for element in suite.iter("skipped")]
    assert skipped
    reasons = {other.reason for other in TOOLS if other in tools or other.path() is None}
    assert all(any(reason in message for reason in reasons) for message in skipped), skipped


@pytest.mark.stack
@pytest.mark.timeout(WITHIN_S + 60)
def test_without_any_tool_every_test_is_collected(tree: Path, tmp_path: Path) -> None:
    said = pytest_without(list(TOOLS), tree, tmp_path, "--collect-only")
    assert re.search(r"^\d+ tests collected", said, re.M)


@pytest.mark.stack
@pytest.mark.parametrize("tool", BUILT_WITH, ids=lambda tool: tool.name)
def test_without_what_it_is_built_with_the_native_decoder_is_left_out(tool: Tool, tree: Path, tmp_path: Path) -> None:
    environment = hidden([tool], tree, tmp_path)
    if tool in HEADERS:
        (tmp_path / HEADERS[tool]).write_text("#error this header is hidden\n")
        environment["CFLAGS"] = f"-I{tmp_path}"
    build = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build_ext", "--build-lib"]
    done = subprocess.run(
        [*build, str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")],
        cwd=tree, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "failed" in done.stderr
    assert not list((tmp_path / "lib").rglob("*.so"))


def test_tools_are_looked_up_in_one_place() -> None:
    """A skip that is not in the table is one that `make test` can't tell how to avoid."""
    alone = {
        "tests/system_packages.py",
        "tests/test_system_packages.py",
        "tests/services/local/test_supervisor.py",  # of Linux alone, which no package brings
    }
    elsewhere = [
        f"{path.relative_to(ROOT)}: {found}"
        for path in (ROOT / "tests").rglob("*.py")
        if str(path.relative_to(ROOT)) not in alone
        for found in re.findall(r"pytest\.skip\(|mark\.skipif|importorskip|shutil\.which", path.read_text())
    ]
    assert elsewhere == []


def test_every_tool_says_how_to_have_it_and_is_hidden_by_a_test() -> None:
    assert list(USERS) == list(TOOLS)
    for tool in TOOLS:
        assert tool.covers
        assert tool.packages or tool.hint
        assert tool.reason.startswith(f"{tool.name} is missing (")
    managers = {manager for tool in TOOLS for manager in tool.packages}
    assert managers <= set(packages.MANAGERS)


def test_one_line_says_what_is_missing_and_how_to_have_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tools = [packages.PROMETHEUS, packages.PROMTOOL, packages.CRDS]
    assert packages.summary("test", []) == ""
    for manager, wanted in (
        ("apt-get", "Debian: sudo apt-get install --no-install-recommends prometheus;"),
        ("dnf", "Fedora: sudo dnf install golang-github-prometheus;"),
        ("brew", "Homebrew: brew install prometheus;"),
    ):
        (tmp_path / manager).mkdir()
        (tmp_path / manager / manager).touch(0o755)
        monkeypatch.setenv("PATH", str(tmp_path / manager))
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        line = packages.summary("test", tools)
        assert "\n" not in line
        assert line.startswith("Missing here: prometheus, promtool, a folder of CRDs. Not tested without: metrics,")
        assert wanted in line
        assert "RESFORGE_CRDS names a folder" in line
    monkeypatch.setenv("PATH", str(tmp_path))
    line = packages.summary("test", tools)
    assert all(name in line for name in ("Debian: ", "Fedora: ", "Homebrew: "))


APT_GET = """#!/bin/sh
echo "$@" >> {log}
case "$*" in *prometheus*) touch {folder}/prometheus {folder}/promtool; chmod +x {folder}/prom* ;; esac
exit {status}
"""


@pytest.mark.parametrize("status", [0, 100])
def test_as_root_what_is_missing_is_installed(
    status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a stand-in for apt-get, that the test may not install anything."""
    log, program = tmp_path / "log", tmp_path / "apt-get"
    program.write_text(APT_GET.format(log=log, folder=tmp_path, status=status))
    program.chmod(0o755)
    without = path_without("prometheus|promtool|apt-get", tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{without}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(packages, "TOOLS", (packages.PROMETHEUS, packages.PROMTOOL))
    monkeypatch.setattr(packages, "build_again", lambda ready: None)
    packages.main(["--look"])
    assert not log.exists()
    assert "Missing here: prometheus, promtool." in capsys.readouterr().out
    packages.main([])
    said = capsys.readouterr().out
    assert "Installing by apt-get what tests use and this machine lacks: prometheus" in said
    if status:
        assert log.read_text() == "-qq update\n"
        assert "apt-get update failed" in said
        assert "Missing here: prometheus, promtool." in said
    else:
        assert log.read_text() == "-qq update\n-qq install --yes --no-install-recommends prometheus\n"
        assert "Missing" not in said
        packages.main([])
        assert capsys.readouterr().out == ""


def test_what_came_after_the_installation_has_the_decoder_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, header = tmp_path / "ready", tmp_path / "jpeglib.h"
    header.touch()
    monkeypatch.setattr(packages, "NATIVE_DECODER", Tool("it", "", lambda: None))
    monkeypatch.setattr(packages, "C_COMPILER", Tool("cc", "", lambda: header))
    monkeypatch.setattr(packages, "LIBJPEG", Tool("header", "", lambda: header))
    monkeypatch.setattr(packages, "PYTHON_HEADERS", Tool("headers", "", lambda: header))
    packages.build_again(ready)  # nothing was installed yet
    later = time.time() + 60
    ready.touch()
    os.utime(ready, (later, later))
    packages.build_again(ready)
    assert ready.exists()
    os.utime(ready, (1, 1))
    packages.build_again(ready)
    assert not ready.exists()
