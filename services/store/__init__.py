"""The database: tables, migrations and the one class that reads and writes them."""

from services.store.engine import connect
from services.store.migrate import migrate

__all__ = ["connect", "migrate"]
