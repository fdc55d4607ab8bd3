import os
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import Engine, insert, select, text
from sqlalchemy.exc import IntegrityError, StatementError

from resforge.jobs import DatasetInfo
from resforge.spec import TrainSpec
from services.errors import InvalidDatabaseUrl, StoreUnavailable
from services.store import connect
from services.store.engine import transaction
from services.store.store import JobStore
from services.store.tables import ApiKeyRow, ProjectRow
from tests.services.store.conftest import Harness

Open = Callable[[str], Engine]

SUBMIT = """
import os
from resforge import recipes
from services.store import connect
from services.store.builtin import BUILTIN
from services.store.store import JobStore

store = JobStore(connect(os.environ["DATABASE_URL"]))
for _ in range(10):
    store.submit("demo", recipes.get("digits/resnet-20").spec, BUILTIN[0])
"""


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("mysql://user:hidden@host/database", "mysql is not"),
        ("nonsense", "can't be read"),
        ("", "can't be read"),
        ("postgresql://user:hidden@host:port/database", "can't be read"),
    ],
)
def test_a_url_for_no_known_database_is_refused_without_its_password(url: str, message: str) -> None:
    with pytest.raises(InvalidDatabaseUrl, match=message) as refusal:
        connect(url)
    assert "sqlite:///path" in str(refusal.value)
    assert "hidden" not in str(refusal.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_postgres_is_reached_by_psycopg_however_its_url_is_spelt(scheme: str) -> None:
    assert connect(f"{scheme}://user@host/database").driver == "psycopg"


@pytest.mark.parametrize(
    "at",
    [
        datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=timezone(timedelta(hours=-8))),
    ],
)
def test_times_come_back_the_same_and_in_utc(engine: Engine, at: datetime) -> None:
    with transaction(engine) as session:
        session.execute(insert(ProjectRow).values(name="timed", created_at=at))
    with transaction(engine, read_only=True) as session:
        found = session.scalar(select(ProjectRow.created_at).where(ProjectRow.created_at == at))
    assert found == at
    assert found is not None
    assert found.utcoffset() == timedelta(0)


def test_a_time_without_a_zone_is_refused(engine: Engine) -> None:
    with pytest.raises(StatementError, match="no time zone"), transaction(engine) as session:
        session.execute(insert(ProjectRow).values(name="timed", created_at=datetime(2026, 1, 1)))


def test_a_transaction_that_fails_leaves_nothing(engine: Engine) -> None:
    def fail() -> None:
        with transaction(engine) as session:
            session.execute(insert(ProjectRow).values(name="half", created_at=datetime.now(UTC)))
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail()
    with transaction(engine, read_only=True) as session:
        assert session.get(ProjectRow, "half") is None


def test_foreign_keys_hold(engine: Engine) -> None:
    row = ApiKeyRow(id="a", project="nowhere", secret_sha256="", note="", created_at=datetime.now(UTC))
    with pytest.raises(IntegrityError), transaction(engine) as session:
        session.add(row)


def test_readers_do_not_wait_for_a_writer(harness: Harness, engine: Engine) -> None:
    record = harness.submit()
    with transaction(engine) as session:
        session.execute(text("UPDATE jobs SET message = 'not committed yet'"))
        assert harness.store.job(harness.project, record.job.id) == record.job
        assert harness.store.live_jobs() == [record]


def test_a_writer_does_not_wait_for_readers(harness: Harness, engine: Engine) -> None:
    record = harness.submit()
    with transaction(engine, read_only=True) as session:
        assert session.scalar(text("SELECT count(*) FROM jobs")) == 1
        harness.submit()
    assert harness.store.live_jobs()[0] == record


@pytest.mark.stack  # many processes: too slow for the quick part
def test_processes_share_a_database(
    store: JobStore, project: str, database_url: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    environment = os.environ | {"DATABASE_URL": database_url}
    processes = [
        subprocess.Popen([sys.executable, "-c", SUBMIT], env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for _ in range(10):
        store.submit(project, spec, digits)
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in processes]
    assert ends == [("", 0)] * 3
    jobs, _ = store.jobs(project, limit=1000)
    assert len(jobs) == 40


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, connected: Open) -> None:
    store = JobStore(connected(f"sqlite:///{tmp_path / 'absent' / 'resforge.db'}"))
    with pytest.raises(StoreUnavailable, match=r"absent/resforge\.db: unable to open database file"):
        store.check()


def test_a_file_that_is_no_database_is_named(tmp_path: Path, connected: Open) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but long enough to be looked at as one" * 10)
    store = JobStore(connected(f"sqlite:///{tmp_path / 'notes.txt'}"))
    with pytest.raises(StoreUnavailable, match=r"notes\.txt: file is not a database"):
        store.check()


def test_a_server_that_does_not_answer_is_unavailable(connected: Open) -> None:
    with socket.socket() as closed:  # bound but not listening, so nobody else can take the port meanwhile
        closed.bind(("127.0.0.1", 0))
        store = JobStore(connected(f"postgresql://user:hidden@127.0.0.1:{closed.getsockname()[1]}/database"))
        with pytest.raises(StoreUnavailable, match="refused") as refusal:
            store.check()
    assert "hidden" not in str(refusal.value)


@pytest.mark.postgres
def test_connections_that_the_server_dropped_are_replaced(postgres_url: str, connected: Open) -> None:
    store = JobStore(connected(postgres_url))
    store.check()
    with transaction(connected(postgres_url)) as session:
        ended = session.execute(
            text(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        ).scalars()
        assert list(ended) == [True]
    store.check()
