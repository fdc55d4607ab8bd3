"""One S3 server for all tests of the API, one API that most of them share, and fresh ones for those that need it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from services.store import connect
from services.store.store import JobStore
from tests.s3 import S3Server, start_s3
from tests.services.api.harness import PROJECT, Api, serve


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = start_s3(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def api(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory, s3: S3Server) -> Iterator[Api]:
    """An API on SQLite that tests share: there may be other jobs in it."""
    path = shutil.copy(sqlite_template, tmp_path_factory.mktemp("api") / "resforge.db")
    engine = connect(f"sqlite:///{path}")
    store = JobStore(engine)
    store.create_project(PROJECT)
    with serve(store, s3) as api:
        yield api
    engine.dispose()


@pytest.fixture
def http(api: Api) -> Iterator[httpx.Client]:
    with api.http() as http:
        yield http


@pytest.fixture
def sqlite_store(sqlite_url: str) -> Iterator[JobStore]:
    """A store of this test's own."""
    engine = connect(sqlite_url)
    store = JobStore(engine)
    store.create_project(PROJECT)
    yield store
    engine.dispose()


@pytest.fixture
def fresh_api(sqlite_store: JobStore, s3: S3Server) -> Iterator[Api]:
    """An API of this test's own, on SQLite."""
    with serve(sqlite_store, s3) as api:
        yield api


@pytest.fixture
def api_on_each(store: JobStore, s3: S3Server) -> Iterator[Api]:
    """An API of this test's own, on SQLite, and on PostgreSQL."""
    with serve(store, s3) as api:
        yield api
