"""Run by Alembic inside the connection and the transaction of services.store.migrate."""

from alembic import context

from services.store.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
