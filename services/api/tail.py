"""Following a job's streams: one tailer for each job and stream, shared by every connection that listens to it.

A tailer polls its source about once a second, only while somebody listens, and keeps the newest items. Each listener
takes items at its own pace: from the tailer where it keeps up, from the source where it is further behind. So a slow
listener costs nobody else anything, and none misses or repeats an item.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import dropwhile
from typing import Any, Generic, Protocol, Self, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import BaseModel

from resforge.jobs import TERMINAL, JobState
from resforge.s3 import StorageError
from services.errors import JobNotFound, StoreUnavailable

logger = logging.getLogger(__name__)

PAGE = 500
KEPT = 2000
RETRY_MS = 1000
DELETED = "DELETED"  # instead of a state, where the job is gone
THREADS = 8  # a store that hangs holds these, and none of the threads that answer requests

# What may pass by itself; the listeners wait for it.
PASSING = (StorageError, StoreUnavailable)


class Ordered(Protocol):
    """A place in a stream."""

    def __lt__(self, other: Self, /) -> bool: ...


P = TypeVar("P", bound=Ordered)
R = TypeVar("R")


@dataclass(frozen=True)
class Item(Generic[P]):
    """A record of a stream and the place behind it. No record: there is one, and it can't be read."""

    place: P
    record: BaseModel | None


@dataclass(frozen=True)
class Source(Generic[P]):
    """Where a stream's items are read from. Both functions block, and raise JobNotFound once the job is deleted.

    `read` gives at most `limit` items behind a place, in order; `state` the job's state.
    """

    key: Hashable
    read: Callable[[P, int], Sequence[Item[P]]]
    state: Callable[[], JobState]


class _Tail(Generic[P]):
    """The items behind `floor` up to `place`, and whether more will come."""

    def __init__(self, source: Source[P], start: P) -> None:
        self.source = source
        self.floor = start
        self.place = start
        self.items: deque[Item[P]] = deque()
        self.ended: str | None = None
        self.failed = False
        self.changed = asyncio.Event()
        self.listeners = 0
        self.poller: asyncio.Task[None] | None = None

    def behind(self, place: P) -> list[Item[P]]:
        return list(dropwhile(lambda item: not place < item.place, self.items))

    def add(self, items: Sequence[Item[P]]) -> None:
        self.items.extend(items)
        self.place = items[-1].place
        while len(self.items) > KEPT:
            self.floor = self.items.popleft().place

    def wake(self) -> None:
        """Wake all who wait; who waits after this waits for the next time."""
        self.changed.set()
        self.changed = asyncio.Event()


class Tails:
    """Every tailer of this process. Used from one event loop; call `close` before it stops."""

    def __init__(
        self,
        *,
        every_s: float = 1.0,
        keepalive_s: float = 15.0,
        opened: Callable[[], object] = lambda: None,
        closed: Callable[[], object] = lambda: None,
    ) -> None:
        self._every_s = every_s
        self._keepalive_s = keepalive_s
        self._opened, self._closed = opened, closed
        self._tails: dict[Hashable, _Tail[Any]] = {}
        self._limiter: CapacityLimiter | None = None
        self._closing = False

    def close(self) -> None:
        """End every stream soon. Clients find no end event, and take it up again elsewhere."""
        self._closing = True
        for tail in self._tails.values():
            tail.wake()

    @property
    def active(self) -> int:
        """How many tailers poll now."""
        return len(self._tails)

    async def follow(self, source: Source[P], after: P) -> AsyncGenerator[bytes]:
        """Everything behind `after` as Server-Sent Events, and an `end` event once the job has ended."""
        tail = self._enter(source, after)
        place = after
        try:
            yield format_sse_event(comment="listening", retry=RETRY_MS)
            while not self._closing and not tail.failed:
                # Both before the items: what the tail holds by now is complete if it had ended by then.
                changed, ended = tail.changed, tail.ended
                try:
                    items = await self._behind(tail, place)
                except PASSING as error:
                    logger.warning("stream %s: %s", source.key, error)
                    items, ended = (), None
                except JobNotFound:
                    items, ended = (), DELETED
                for item in items:
                    if item.record is not None:
                        yield format_sse_event(data_str=item.record.model_dump_json(), id=str(item.place))
                    place = item.place
                    if self._closing:
                        return
                if items:
                    continue
                if ended is not None:
                    yield format_sse_event(event="end", data_str=f'{{"state":"{ended}"}}')
                    return
                # Behind the tail with nothing to read: its first listener gave a place that the stream has not
                # reached, or the source does not answer. Look again soon.
                pause = self._every_s if place < tail.place else self._keepalive_s
                try:
                    async with asyncio.timeout(pause):
                        await changed.wait()
                except TimeoutError:
                    yield KEEPALIVE_COMMENT
        finally:
            self._leave(tail)

    async def _behind(self, tail: _Tail[P], place: P) -> Sequence[Item[P]]:
        """The items that come behind `place`, as far as there are any now."""
        if place < tail.floor:
            return await self._in_thread(tail.source.read, place, PAGE)
        return tail.behind(place)

    def _enter(self, source: Source[P], after: P) -> _Tail[P]:
        tail = self._tails.get(source.key)
        if tail is None:
            tail = self._tails[source.key] = _Tail(source, after)
            tail.poller = asyncio.create_task(self._poll(tail))
        tail.listeners += 1
        self._opened()
        return tail

    def _leave(self, tail: _Tail[Any]) -> None:
        tail.listeners -= 1
        self._closed()
        if not tail.listeners:
            del self._tails[tail.source.key]
            if tail.poller:
                tail.poller.cancel()

    async def _poll(self, tail: _Tail[P]) -> None:
        try:
            while tail.ended is None:
                if not await self._look(tail):
                    await asyncio.sleep(self._every_s)
        except Exception:
            logger.exception("stream %s breaks off", tail.source.key)
            tail.failed = True
            tail.wake()

    async def _look(self, tail: _Tail[P]) -> bool:
        """Fetch what is new; whether there may be more of it at once."""
        source = tail.source
        try:
            # The state first: what an ended job has written lies there already when it is read afterwards.
            state = await self._in_thread(source.state)
            items = await self._in_thread(source.read, tail.place, PAGE)
        except PASSING as error:
            logger.warning("stream %s: %s", source.key, error)
            return False
        except JobNotFound:
            tail.ended = DELETED
            tail.wake()
            return False
        full = len(items) >= PAGE
        if items:
            tail.add(items)
        if state in TERMINAL and not full:
            tail.ended = state
        if items or tail.ended:
            tail.wake()
        return full

    async def _in_thread(self, function: Callable[..., R], *arguments: Any) -> R:
        if self._limiter is None:
            self._limiter = CapacityLimiter(THREADS)
        # A thread that waits for a silent store is left behind, so that a stream's end never waits for it.
        return await to_thread.run_sync(partial(function, *arguments), limiter=self._limiter, abandon_on_cancel=True)
