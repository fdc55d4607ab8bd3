"""The client that commands use, for the home that was named before the command."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from resforge.client import Client


def client(context: typer.Context) -> "Client":
    """A connected client.

    Raises:
        NotConnected: no stack is known.
    """
    from resforge.client import Client

    return Client(home=named_home(context))


def named_home(context: typer.Context) -> Path | None:
    """What --home before the command named."""
    home = context.obj
    return home if isinstance(home, Path) else None
