from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine

from resforge.jobs import DatasetInfo
from resforge.s3 import ObjectStore
from resforge.spec import TrainSpec
from services.launchers.memory import MemoryLauncher
from services.store.store import JobStore
from tests.s3 import S3Server, start_s3
from tests.services.controller.stage import Stage


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = start_s3(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture
def objects(s3_server: S3Server) -> ObjectStore:
    """A real S3, whose server tests may stop: it runs again afterwards. Jobs have prefixes of their own in it."""
    if s3_server.process is None:
        s3_server.start()
    return s3_server.store(timeout_s=2, attempts=1)


@pytest.fixture
def engine_of_stage(sqlite_url: str, connected: Callable[[str], Engine]) -> Engine:
    return connected(sqlite_url)


@pytest.fixture
def stage(
    engine_of_stage: Engine,
    objects: ObjectStore,
    project: str,
    spec: TrainSpec,
    digits: DatasetInfo,
) -> Iterator[Stage]:
    """A real SQLite and a real S3, with a launcher in memory."""
    store = JobStore(engine_of_stage)
    store.create_project(project)
    stage = Stage(store, objects, MemoryLauncher(), project, spec, digits)
    yield stage
    stage.close()


@pytest.fixture
def each_stage(
    store: JobStore, objects: ObjectStore, project: str, spec: TrainSpec, digits: DatasetInfo
) -> Iterator[Stage]:
    """The same on each kind of database."""
    stage = Stage(store, objects, MemoryLauncher(), project, spec, digits)
    yield stage
    stage.close()
