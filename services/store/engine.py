"""Connections: SQLite for one machine, PostgreSQL for many.

On SQLite several processes share one file. A transaction that will write says so at once (BEGIN IMMEDIATE): one that
began by reading and then found another writer ahead of it could only fail.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pydantic_core
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from services.errors import InvalidDatabaseUrl, StoreUnavailable

BUSY_TIMEOUT_S = 30
CONNECT_TIMEOUT_S = 10
READ_ONLY = "resforge_read_only"


def connect(url: str) -> Engine:
    """Make an engine for `sqlite:///path` or `postgresql+psycopg://...`. Nothing is opened yet.

    Raises:
        InvalidDatabaseUrl: the URL is for no database that the store knows.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(parsed, json_serializer=_to_json, connect_args={"timeout": BUSY_TIMEOUT_S})
        event.listen(engine, "connect", _on_sqlite_connect)
        event.listen(engine, "begin", _on_sqlite_begin)
        return engine
    # Without a limit, a host that drops packets would hold a request for minutes.
    limits = {} if "connect_timeout" in parsed.query else {"connect_timeout": CONNECT_TIMEOUT_S}
    return create_engine(parsed, json_serializer=_to_json, pool_pre_ping=True, connect_args=limits)


@contextmanager
def transaction(engine: Engine, *, read_only: bool = False) -> Iterator[Session]:
    """One short transaction, committed at the end, rolled back on any exception.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    bind = engine.execution_options(**{READ_ONLY: True}) if read_only else engine
    try:
        with Session(bind, expire_on_commit=False) as session, session.begin():
            yield session
    except (DataError, IntegrityError, NotSupportedError, ProgrammingError):
        raise  # the database answers; the mistake is the caller's
    except (DBAPIError, PoolTimeoutError) as error:
        raise _unavailable(engine, error) from error


def use_write_ahead_log(engine: Engine) -> None:
    """Let readers of an SQLite file go on while another process writes. The file remembers this.

    Raises:
        StoreUnavailable: the file can't be opened or written.
    """
    try:
        connection = engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA journal_mode = WAL")
        finally:
            connection.close()
    except (DBAPIError, sqlite3.Error) as error:
        raise _unavailable(engine, error) from error


def _unavailable(engine: Engine, error: Exception) -> StoreUnavailable:
    cause = error.orig if isinstance(error, DBAPIError) else error
    where = f" {engine.url.database}" if engine.dialect.name == "sqlite" else ""
    return StoreUnavailable(f"the database{where}: {' '.join(str(cause).split())}")


def _parse(url: str) -> URL:
    accepted = "accepted are sqlite:///path/to/file and postgresql+psycopg://user:password@host/database"
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "postgresql":
            return parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
            return parsed
    except (ArgumentError, NoSuchModuleError, ValueError):
        # The message would repeat the URL, which may hold a password.
        raise InvalidDatabaseUrl(f"the database URL can't be read; {accepted}") from None
    if parsed.get_backend_name() == "sqlite":
        raise InvalidDatabaseUrl(f"a database in memory can't be shared between processes; {accepted}")
    raise InvalidDatabaseUrl(f"{parsed.get_backend_name()} is not a database that the store knows; {accepted}")


def _to_json(value: Any) -> str:
    # NaN and infinities are no JSON, and PostgreSQL refuses them.
    return pydantic_core.to_json(value, inf_nan_mode="null").decode()


def _on_sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the begin event below emits BEGIN itself
    connection.execute("PRAGMA foreign_keys = ON")


def _on_sqlite_begin(connection: Connection) -> None:
    read_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
