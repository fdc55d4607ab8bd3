"""One S3 server for all tests of the API, and an API over a fresh database for each."""

from collections.abc import Iterator

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


@pytest.fixture
def sqlite_store(sqlite_url: str) -> Iterator[JobStore]:
    engine = connect(sqlite_url)
    store = JobStore(engine)
    store.create_project(PROJECT)
    yield store
    engine.dispose()


@pytest.fixture
def api(sqlite_store: JobStore, s3: S3Server) -> Iterator[Api]:
    """An API on SQLite."""
    with serve(sqlite_store, s3) as api:
        yield api


@pytest.fixture
def api_on_each(store: JobStore, s3: S3Server) -> Iterator[Api]:
    """An API on SQLite, and on PostgreSQL."""
    with serve(store, s3) as api:
        yield api


@pytest.fixture
def http(api: Api) -> Iterator[httpx.Client]:
    with api.http() as http:
        yield http
