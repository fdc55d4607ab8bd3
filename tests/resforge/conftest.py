"""The command line where no service is known, and before a real API."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.resforge.cli_runner import Cli
from tests.s3 import start_s3
from tests.services.api.harness import Api, new_store, serve


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("cli")
    s3 = start_s3(folder)
    try:
        with serve(new_store(folder), s3) as api:
            yield api
    finally:
        s3.stop()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """The command line where no service is known."""
    for name in ("RESFORGE_URL", "RESFORGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RESFORGE_HOME", str(tmp_path / "home"))
    return Cli(monkeypatch, capsys)


@pytest.fixture
def cli(offline: Cli, api: Api, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line where the service is known by the environment."""
    monkeypatch.setenv("RESFORGE_URL", api.url)
    monkeypatch.setenv("RESFORGE_API_KEY", api.key)
    return offline
