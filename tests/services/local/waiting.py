"""Waiting for what must come about, with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")


def until(condition: Callable[[], T], *, within_s: float = 30.0, what: str = "") -> T:
    """What `condition` gives once it is true; asked every 50 ms.

    Raises:
        AssertionError: it was not true within `within_s` seconds.
    """
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {what or condition}; last: {found!r}"
        time.sleep(0.05)
    return found


def gone(pid: int) -> bool:
    """True where no such process runs. One that has ended but was not waited for yet counts as gone."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
