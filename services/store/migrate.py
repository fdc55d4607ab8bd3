"""Brings a database to the schema that this version declares. Run at every start, by several processes at once if need
be; not by two threads of one process, since Alembic keeps its context in module globals.
"""

from functools import cache
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, func, select

from services.errors import SchemaNotCurrent
from services.store.base import insert
from services.store.builtin import BUILTIN
from services.store.engine import transaction, use_write_ahead_log
from services.store.tables import DatasetRow

if TYPE_CHECKING:
    from alembic.config import Config

# Any number does that nothing else in the database locks.
ADVISORY_LOCK = 7_377_336_001


def migrate(engine: Engine) -> None:
    """Bring the schema to this version's and register the built-in data sets. Harmless when it is there already.

    Raises:
        SchemaNotCurrent: the database was migrated by a newer version.
        StoreUnavailable: the database does not answer.
    """
    from alembic import command
    from alembic.util import CommandError

    if engine.dialect.name == "sqlite":
        use_write_ahead_log(engine)
    # One transaction for all: on SQLite its BEGIN IMMEDIATE keeps others out, on PostgreSQL the advisory lock does.
    with transaction(engine) as session:
        if engine.dialect.name == "postgresql":
            session.execute(select(func.pg_advisory_xact_lock(ADVISORY_LOCK)))
        config = _config()
        config.attributes["connection"] = session.connection()
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise SchemaNotCurrent(f"the database was migrated by a newer version: {error}") from error
        for dataset in BUILTIN:  # an operator's own of that name stays
            session.execute(insert(session, DatasetRow).values(dataset.model_dump()).on_conflict_do_nothing())


def current_revision(connection: Connection) -> str | None:
    """The revision that the database is at; None before the first migration."""
    from alembic.migration import MigrationContext

    return MigrationContext.configure(connection).get_current_revision()


@cache
def head_revision() -> str | None:
    """The revision that this version works with."""
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(_config()).get_current_head()


def _config() -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "services.store:migrations")
    return config
