"""What the store tells of its transactions."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from services.errors import JobNotFound, StoreUnavailable
from services.store.store import JobStore


def test_each_transaction_is_told_with_how_it_ended(
    sqlite_url: str, connected: Callable[[str], Engine], tmp_path: Path
) -> None:
    told: list[tuple[str, str]] = []

    def observe(kind: str, outcome: str, seconds: float) -> None:
        assert 0 < seconds < 60
        told.append((kind, outcome))

    store = JobStore(connected(sqlite_url), observe=observe)
    store.create_project("demo")
    store.counts()
    with pytest.raises(JobNotFound):
        store.job("demo", "absent")  # an answer as well
    gone = JobStore(connected(f"sqlite:///{tmp_path / 'absent' / 'resforge.db'}"), observe=observe)
    with pytest.raises(StoreUnavailable):
        gone.counts()
    assert told == [("write", "ok"), ("read", "ok"), ("read", "ok"), ("read", "unavailable")]
