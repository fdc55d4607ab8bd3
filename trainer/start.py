"""How far a start has come, and when: for a job's history, and for benchmarks/start.py, which tells the parts apart."""

import os
import time
from pathlib import Path

marks: dict[str, float] = {}
"""Seconds since 1970 by the name of what was reached, in this process."""


def mark(name: str) -> None:
    """Note that this process has come so far, the first time alone."""
    marks.setdefault(name, time.time())


def mark_process(name: str) -> None:
    """Note when this process was started; where the system does not tell, that is now."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # proc(5): starttime
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        age = 0.0
    marks.setdefault(name, time.time() - age)
