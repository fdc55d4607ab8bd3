import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Column, Engine, MetaData, String, Table, inspect, text

from resforge import recipes
from services.errors import SchemaNotCurrent
from services.store import migrate
from services.store.builtin import BUILTIN
from services.store.store import JobStore
from services.store.tables import Base

Open = Callable[[str], Engine]


def differences(engine: Engine, metadata: MetaData) -> list[Any]:
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


def schema(engine: Engine) -> dict[str, Any]:
    """All that the database itself says of its tables, but Alembic's own."""
    found: dict[str, Any] = {}
    inspector = inspect(engine)
    for table in inspector.get_table_names():
        if table in ("alembic_version", "sqlite_sequence"):
            continue
        found[table] = {
            "columns": [{**column, "type": repr(column["type"])} for column in inspector.get_columns(table)],
            "primary key": inspector.get_pk_constraint(table),
            "foreign keys": inspector.get_foreign_keys(table),
            "unique": sorted(inspector.get_unique_constraints(table), key=lambda item: str(item["name"])),
            "indices": sorted(inspector.get_indexes(table), key=lambda item: str(item["name"])),
        }
        if engine.dialect.name == "sqlite":
            with engine.connect() as connection:
                sql = connection.scalar(text("SELECT sql FROM sqlite_master WHERE name = :name"), {"name": table})
            found[table]["autoincrement"] = "AUTOINCREMENT" in str(sql)
    return found


def test_migrations_give_the_tables_that_the_code_declares(engine: Engine) -> None:
    assert differences(engine, Base.metadata) == []


def test_migrations_give_what_creating_the_tables_would_give(empty_database_url: str, connected: Open) -> None:
    engine = connected(empty_database_url)
    Base.metadata.create_all(engine)
    declared = schema(engine)
    Base.metadata.drop_all(engine)
    assert schema(engine) == {}
    migrate(engine)
    assert schema(engine) == declared


@pytest.mark.parametrize(
    "change",
    [
        lambda jobs: jobs.append_column(Column("more", String)),
        lambda jobs: jobs._columns.remove(jobs.c.message),
        lambda jobs: setattr(jobs.c.version, "type", String()),
        lambda jobs: setattr(jobs.c.reason, "nullable", False),
        lambda jobs: jobs.indexes.clear(),
    ],
    ids=["more", "fewer", "type", "nullable", "index"],
)
def test_the_comparison_would_notice(engine: Engine, change: Callable[[Table], None]) -> None:
    other = MetaData(naming_convention=Base.metadata.naming_convention)
    for table in Base.metadata.sorted_tables:
        table.to_metadata(other)
    change(other.tables["jobs"])
    assert differences(engine, other) != []


def test_migrating_twice_changes_nothing(empty_database_url: str, connected: Open) -> None:
    engine = connected(empty_database_url)
    store = JobStore(engine)
    with pytest.raises(SchemaNotCurrent, match="at nothing"):
        store.check()
    migrate(engine)
    store.check()
    store.create_project("demo")
    before = schema(engine)
    migrate(engine)
    store.check()
    assert schema(engine) == before
    assert store.datasets() == sorted(BUILTIN, key=lambda item: item.name)
    _, key = store.create_key("demo")
    assert store.authenticate(key) == "demo"


@pytest.mark.stack  # many processes: too slow for the quick part
def test_processes_that_migrate_at_the_same_time_do_no_harm(empty_database_url: str, connected: Open) -> None:
    environment = os.environ | {"RESFORGE_DATABASE_URL": empty_database_url, "RESFORGE_S3_BUCKET": "unused"}
    command = [sys.executable, "-m", "services", "migrate"]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in processes]
    assert ends == [("", 0)] * 4
    engine = connected(empty_database_url)
    JobStore(engine).check()
    assert differences(engine, Base.metadata) == []


def test_a_database_of_a_newer_version_is_left_alone(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaNotCurrent, match="9999"):
        JobStore(engine).check()
    with pytest.raises(SchemaNotCurrent, match="newer version"):
        migrate(engine)


def test_attempts_of_before_that_have_left_their_queue_are_told(empty_database_url: str, connected: Open) -> None:
    engine = connected(empty_database_url)
    migrate(engine)
    store = JobStore(engine)
    store.create_project("demo")
    jobs = [store.submit("demo", recipes.get("digits/resnet-20").spec, BUILTIN[0])[0].id for _ in range(4)]
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE attempts DROP COLUMN admitted_at"))
        for column in ("project", "job"):
            connection.execute(text(f"ALTER TABLE datasets DROP COLUMN {column}"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0002'"))
        columns = "job_id, number, state, message, resume_from, restarts, created_at, submitted_at, beat, finished_at"
        values = ":job, 1, :state, '', '[]', 0, :at, :submitted, :beat, :finished"
        row = f"INSERT INTO attempts ({columns}) VALUES ({values})"
        at, later = datetime(2026, 5, 6, tzinfo=UTC), datetime(2026, 5, 7, tzinfo=UTC)
        for job, state, submitted, beat, finished in (
            (jobs[0], "RUNNING", later, 7, None),
            (jobs[1], "FAILED", later, None, later),
            (jobs[2], "SUBMITTED", later, None, None),  # it may be in Kueue's queue; the controller will tell
            (jobs[3], "PENDING", None, None, None),
        ):
            told = {"job": job, "state": state, "at": at, "submitted": submitted, "beat": beat, "finished": finished}
            connection.execute(text(row), told)
    migrate(engine)
    store.check()
    assert [store.attempts("demo", job)[0].admitted_at for job in jobs] == [later, later, None, None]
