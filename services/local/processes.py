"""Finding and ending the processes of a stack, also those whose parents have died."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import psutil

MARK = "RESFORGE_STACK"
PART = "RESFORGE_STACK_PART"  # which of its programs started a process
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl() -> Callable[[int, int], int] | None:
    """Linux's prctl, or None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None, use_errno=True).prctl
    return lambda option, value: int(function(option, value, 0, 0, 0))


def adopt_orphans() -> None:
    """Become the parent of descendants whose parents die, so that none gets out of sight. Linux only."""
    prctl = _prctl()
    if prctl:
        prctl(_PR_SET_CHILD_SUBREAPER, 1)


def dies_with_parent(number: signal.Signals) -> Callable[[], None]:
    """What a child runs before exec, so that it gets a signal when its parent dies, even by SIGKILL. Linux only."""
    prctl = _prctl()
    parent = os.getpid()

    def before_exec() -> None:
        if prctl:
            prctl(_PR_SET_PDEATHSIG, number)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)

    return before_exec


def members(stack_id: str, work: Path) -> list[psutil.Process]:
    """The processes of a stack, its supervisor not among them.

    They carry MARK in their environment. Some of Ray's write their title over it; they are known by their working
    directory. Only a process that shows no environment at all is judged so: a person's shell may stand there too.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            environment = process.environ()
            if environment.get(MARK) == stack_id or (not environment and process.cwd() == str(work)):
                found.append(process)
        except (psutil.Error, OSError):  # gone, or another user's
            continue
    return found


def strays(
    stack_id: str, work: Path, roots: Collection[int], whose: Collection[str | None] | None = None
) -> list[psutil.Process]:
    """The processes of a stack that are neither in `roots` nor below one of them, and children of this process.

    Args:
        whose: only those which these programs started; None among them: and those that show nobody's name.
    """
    # Candidates first: what a kept root starts from here on is no candidate, and so is never ended by mistake.
    candidates = {process.pid: process for process in members(stack_id, work)}
    # Orphans that were adopted count even where they dropped the mark.
    candidates |= {process.pid: process for process in psutil.Process().children(recursive=True)}
    kept = set(roots)
    for root in roots:
        try:
            kept.update(child.pid for child in psutil.Process(root).children(recursive=True))
        except psutil.Error:
            continue
    return [
        process for pid, process in candidates.items() if pid not in kept and (whose is None or _part(process) in whose)
    ]


def _part(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(PART)
    except (psutil.Error, OSError):
        return None


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL each; one that is gone is no error. psutil hits no other process that got the same id since."""
    for process in processes:
        try:
            process.kill()
        except psutil.Error:
            continue


def end_members(stack_id: str, work: Path, *, deadline_s: float = 15.0) -> int:
    """End every process of a stack whose supervisor is gone, and return how many there were.

    Raises:
        TimeoutError: some are still there after the deadline.
    """
    ended: set[int] = set()
    until = time.monotonic() + deadline_s
    while left := members(stack_id, work):
        if time.monotonic() > until:
            raise TimeoutError(f"processes of the stack do not end: {sorted(process.pid for process in left)}")
        ended.update(process.pid for process in left)
        kill(left)
        psutil.wait_procs(left, timeout=0.2)
    return len(ended)
