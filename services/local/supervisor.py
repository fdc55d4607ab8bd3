"""Keeping the programs of a stack alive, and ending them all.

One thread, so that children may be started with a function that runs between fork and exec, and so that the signal
they get when their parent dies (which the kernel ties to the thread) means the death of the process.
"""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.local import processes
from services.local.stack import PREFIX, Program

if TYPE_CHECKING:
    import psutil

log = logging.getLogger("resforge.local")

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0  # one that ran for so long starts again after the first pause


class PartState(StrEnum):
    WAITING = "waiting"  # for what must be ready before it
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    DONE = "done"
    STOPPED = "stopped"


@dataclass
class Part:
    """A program and how it is doing."""

    program: Program
    log_path: Path
    state: PartState = PartState.WAITING
    pid: int | None = None
    starts: int = 0
    message: str = ""
    ready_after_s: float | None = None
    was_ready: asyncio.Event = field(default_factory=asyncio.Event)


class StartFailed(Exception):
    """A program that must run through before the others start did not. The message is its last line."""


class Supervisor:
    """Runs a stack until it is told to stop.

    Args:
        programs: what to run; names are unique.
        logs: the folder for each program's output.
        work: the programs' working directory.
        strays: gives the stack's processes that are not below the process ids it is given; of all, or of these programs
            alone (None: and of those that can't be told).
        changed: called whenever a part's state changes.
    """

    def __init__(
        self,
        programs: Iterable[Program],
        *,
        logs: Path,
        work: Path,
        strays: "Callable[[Collection[int], Collection[str | None] | None], list[psutil.Process]]",
        changed: Callable[[Sequence[Part]], None],
    ) -> None:
        self.parts = [Part(program, logs / f"{program.name}.log") for program in programs]
        self._by_name = {part.program.name: part for part in self.parts}
        self._work = work
        self._strays = strays
        self._changed = changed
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._hurry = asyncio.Event()
        self._began = time.monotonic()

    async def run(self, stop: asyncio.Event, on_ready: Callable[[], None]) -> None:
        """Start everything, call `on_ready` when all is ready for the first time, and keep it so until `stop` is set.

        Whatever ends this, every process of the stack is ended before it returns.

        Raises:
            StartFailed: a program that runs once failed.
        """
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        processes.adopt_orphans()
        keepers = [asyncio.create_task(self._keep(part)) for part in self.parts]
        announcer = asyncio.create_task(self._announce(on_ready))
        stopper = asyncio.create_task(stop.wait())
        try:
            tasks = {stopper, announcer, *keepers}
            while not stopper.done():
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in (*keepers, announcer, stopper):
                task.cancel()
            await asyncio.gather(*keepers, announcer, stopper, return_exceptions=True)
            await self._end_all()

    def hurry(self) -> None:
        """While it stops: wait no longer for any program to end by itself."""
        self._hurry.set()

    async def _announce(self, on_ready: Callable[[], None]) -> None:
        for part in self.parts:
            await part.was_ready.wait()
        on_ready()

    # One program -----------------------------------------------------------------------------------------------------

    async def _keep(self, part: Part) -> None:
        """Run one program, again and again unless it is to run once."""
        for name in part.program.after:
            await self._by_name[name].was_ready.wait()
        pause = FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            code = await self._run_once(part)
            part.pid = None
            if part.program.once:
                if code != 0:
                    said = last_line(part.log_path).removeprefix(PREFIX)
                    raise StartFailed(said or f"{part.program.name} ended with code {code}")
                self._set(part, PartState.DONE)
                part.was_ready.set()
                return
            if time.monotonic() - began >= STEADY_S:
                pause = FIRST_PAUSE_S
            self._set(part, PartState.RESTARTING, self._epitaph(part, code, pause))
            log.warning("%s", part.message)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)

    async def _run_once(self, part: Part) -> int:
        """Start the program, note when it is ready, and return its exit code once it has ended."""
        if part.starts:
            # Of the run before, which may hold its ports; what other parts have left running works on.
            program = part.program
            await self._kill_strays((program.name, None) if program.ends_its_own else (program.name,))
        exited = self._spawn(part)
        began = time.monotonic()
        self._set(part, PartState.STARTING)
        probing = asyncio.create_task(self._until_ready(part))
        try:
            either: set[asyncio.Future[Any]] = {exited, probing}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED, timeout=part.program.ready_within_s)
            if probing.done() and not exited.done():
                probing.result()
                part.ready_after_s = time.monotonic() - began
                self._set(part, PartState.READY)
                part.was_ready.set()
            elif not exited.done():
                log.warning("%s is not ready after %s s", part.program.name, part.program.ready_within_s)
                await self._end(part, exited)
            await asyncio.wait({exited})  # unlike a plain await, this leaves the future alone when it is cancelled
            return exited.result()
        finally:
            probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await probing

    async def _until_ready(self, part: Part) -> None:
        if part.program.once:  # ready means through
            await asyncio.Event().wait()
        if part.program.probe is None:
            return
        import httpx  # after the first programs were started, which then load at the same time

        from services.local.probes import is_ready, pause

        async with httpx.AsyncClient(trust_env=False) as client:
            attempt = 0
            while not await is_ready(part.program.probe, client):
                await asyncio.sleep(pause(attempt))
                attempt += 1

    def _spawn(self, part: Part) -> "asyncio.Future[int]":
        program = part.program
        parting = signal.SIGTERM if program.ends_its_own else signal.SIGKILL
        with part.log_path.open("ab") as output:
            child = subprocess.Popen(
                program.argv,
                env={**program.env, processes.PART: program.name},
                cwd=self._work,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the supervisor alone, which ends them in order
                preexec_fn=processes.dies_with_parent(parting),  # noqa: PLW1509  this process has one thread
            )
        part.pid = child.pid
        part.starts += 1
        exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._exits[child.pid] = exited
        # From here on only _reap waits for it, so that no process id is used after it was given back.
        child.returncode = 0
        self._reap()
        return exited

    def _reap(self) -> None:
        """Take the exit codes of all children that have ended; adopted orphans among them."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            exited = self._exits.pop(pid, None)
            if exited is not None and not exited.done():
                exited.set_result(os.waitstatus_to_exitcode(status))

    # Ending ----------------------------------------------------------------------------------------------------------

    async def _end_all(self) -> None:
        """The services first and object storage last, so that what ends can still write."""
        self._changed(self.parts)
        storage = [part for part in self.parts if part.program.name == "s3"]
        others = [part for part in self.parts if part.program.name != "s3"]
        for group in (others, storage):
            await asyncio.gather(*(self._end(part, self._exits.get(part.pid or 0)) for part in group))
            await self._kill_strays()
        for part in self.parts:
            part.pid = None
            self._set(part, PartState.STOPPED)

    async def _end(self, part: Part, exited: "asyncio.Future[int] | None") -> None:
        """Ask the program to end, wait as long as it may take, then end it."""
        if exited is None or exited.done() or part.pid is None:
            return
        for number, wait_s in ((signal.SIGTERM, part.program.grace_s), (signal.SIGKILL, 10.0)):
            if number == signal.SIGTERM and self._hurry.is_set():
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(part.pid, number)
            hurry = asyncio.create_task(self._hurry.wait())
            waiting: set[asyncio.Future[Any]] = {exited} if number == signal.SIGKILL else {exited, hurry}
            await asyncio.wait(waiting, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            if exited.done():
                return
        log.error("%s (process %s) does not end even by SIGKILL", part.program.name, part.pid)

    async def _kill_strays(self, whose: Collection[str | None] | None = None) -> None:
        """End what belongs to the stack, or to some of its programs, and is below none of them."""
        until = time.monotonic() + 15.0
        while left := self._strays(tuple(self._exits), whose):
            if time.monotonic() > until:
                log.error("processes of the stack do not end: %s", sorted(process.pid for process in left))
                return
            processes.kill(left)
            await asyncio.sleep(0.05)
            self._reap()

    # Telling ---------------------------------------------------------------------------------------------------------

    def _set(self, part: Part, state: PartState, message: str = "") -> None:
        part.state, part.message = state, message
        if state in (PartState.READY, PartState.DONE):
            address = f" at {part.program.address}" if part.program.address else ""
            log.info("%s ready%s (%.1f s)", part.program.name, address, time.monotonic() - self._began)
        self._changed(self.parts)

    def _epitaph(self, part: Part, code: int, pause: float) -> str:
        how = f"ended with code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
        last = last_line(part.log_path)
        said = f": {last}" if last else ""
        return f"{part.program.name} {how} and starts again in {pause:g} s ({part.log_path}{said})"


def last_line(path: Path, *, longest: int = 300) -> str:
    """The last line with anything in it, of the last 8 KiB of a file; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return last if len(last) <= longest else last[: longest - 3] + "..."
