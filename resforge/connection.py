"""Which API the client talks to, and with what key.

This is the client's edge: the one place outside `__main__` modules that reads the environment.
"""

import json
import os
from pathlib import Path

from pydantic import ValidationError

from resforge.errors import NotConnected
from resforge.jobs import Resource


class Connection(Resource):
    """How to reach a stack. The fields of S3 are known only of an embedded stack, from its connection.json."""

    url: str
    api_key: str
    s3_endpoint: str | None = None
    s3_bucket: str | None = None
    s3_access_key: str | None = None
    s3_secret_key: str | None = None


def home_directory(home: Path | str | None = None) -> Path:
    """Where the embedded stack keeps its state: `home`, else $RESFORGE_HOME, else ~/.resforge."""
    given = home or os.environ.get("RESFORGE_HOME")
    return Path(given).expanduser() if given else Path.home() / ".resforge"


def connection(url: str | None = None, api_key: str | None = None, *, home: Path | str | None = None) -> Connection:
    """What is given, else RESFORGE_URL and RESFORGE_API_KEY, else the connection.json of the embedded stack.

    The key of connection.json is sent to no other address than the one that stands beside it.

    Raises:
        NotConnected: no address or no key is known, or connection.json can't be read.
    """
    url = url or os.environ.get("RESFORGE_URL") or None
    api_key = api_key or os.environ.get("RESFORGE_API_KEY") or None
    if url and api_key:
        return Connection(url=url.rstrip("/"), api_key=api_key)
    path = home_directory(home) / "connection.json"
    known = _read(path)
    if known is None:
        if url:
            raise NotConnected(f"no API key is known for {url}: set RESFORGE_API_KEY")
        raise NotConnected(
            f"no stack is known ({path} does not exist): start one with `resforge up`, "
            "or set RESFORGE_URL and RESFORGE_API_KEY"
        )
    if url and url.rstrip("/") != known.url.rstrip("/"):
        raise NotConnected(f"no API key is known for {url}: set RESFORGE_API_KEY ({path} is of {known.url})")
    changed = {"url": known.url.rstrip("/"), "api_key": api_key or known.api_key}
    return known.model_copy(update=changed)


def _read(path: Path) -> Connection | None:
    try:
        return Connection.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        raise NotConnected(f"{path} can't be read ({error}); `resforge up` writes it anew") from error
