"""The shared tailers by themselves, over a source that a test fills: nothing lost, nothing twice, nothing polled for
nobody."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resforge.jobs import JobState
from resforge.metrics import LogLine
from resforge.s3 import StorageUnavailable
from resforge.sse import Message, messages
from resforge.storage import Cursor
from services.api import tail as tail_module
from services.api.tail import Item, Source, Tails
from services.errors import JobNotFound
from tests.services.api.harness import line

T = TypeVar("T")
DEADLINE_S = 20


@dataclass
class Fed:
    """A stream in memory. Its texts are numbered from 1, which is also their place."""

    texts: list[str] = field(default_factory=list)
    state: JobState = JobState.RUNNING
    reads: int = 0
    failing: Exception | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, after: int, limit: int) -> list[Item[int]]:
        with self.lock:
            self.reads += 1
            if self.failing:
                raise self.failing
            return [Item(number, line(text)) for number, text in enumerate(self.texts, start=1) if number > after][
                :limit
            ]

    @property
    def source(self) -> Source[int]:
        return Source("fed", self.read, lambda: self.state)

    def end(self) -> None:
        self.state = JobState.SUCCEEDED


def run(work: Callable[[], Awaitable[T]]) -> T:
    async def within() -> T:
        async with asyncio.timeout(DEADLINE_S):
            return await work()

    return asyncio.run(within())


async def receive(stream: AsyncGenerator[bytes], count: int | None = None) -> list[Message]:
    """The next `count` events, or all up to the end of the stream."""
    found: list[Message] = []
    if count == 0:
        return found
    async for chunk in stream:
        found += messages([chunk])
        if len(found) == count:
            break
    return found


def texts(found: list[Message]) -> list[str]:
    return [LogLine.model_validate_json(message.data).line for message in found if message.event == "message"]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_gives_history_then_what_comes_and_then_the_end() -> None:
    async def work() -> None:
        fed, tails = Fed(["a", "b"]), Tails(every_s=0.01)
        stream = tails.follow(fed.source, 0)
        first = await receive(stream, 2)
        assert (texts(first), [message.id for message in first]) == (["a", "b"], ["1", "2"])
        fed.texts.append("c")
        assert texts(await receive(stream, 1)) == ["c"]
        fed.texts.append("d")
        fed.end()
        *rest, end = await receive(stream)
        assert (texts(rest), end) == (["d"], Message('{"state":"SUCCEEDED"}', "end", None))

    run(work)


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(st.lists(st.text(max_size=5), max_size=6), max_size=6),
    cuts=st.lists(st.integers(0, 8), max_size=6),
    page=st.integers(1, 4),
    kept=st.integers(1, 4),
)
def test_resuming_anywhere_loses_and_repeats_nothing(
    chunks: list[list[str]], cuts: list[int], page: int, kept: int
) -> None:
    """Whatever comes when, and wherever connections break, the parts put together are the stream."""

    async def work() -> list[str]:
        fed, tails = Fed(), Tails(every_s=0.001)
        waiting = list(chunks)
        found: list[str] = []
        place = 0
        # Somebody else listens all the time, so that the tailer's memory is shared and may be ahead.
        other = asyncio.create_task(receive(tails.follow(fed.source, 0)))
        for cut in cuts:
            if waiting:
                fed.texts += waiting.pop(0)
            stream = tails.follow(fed.source, place)
            batch = await receive(stream, min(cut, len(fed.texts) - place))
            await stream.aclose()
            found += texts(batch)
            place = int(batch[-1].id or 0) if batch else place
        for chunk in waiting:
            fed.texts += chunk
        fed.end()
        rest = await receive(tails.follow(fed.source, place))
        assert rest[-1].event == "end"
        assert texts(await other) == fed.texts
        assert tails.active == 0
        return found + texts(rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tail_module, "PAGE", page)
        patch.setattr(tail_module, "KEPT", kept)
        assert run(work) == [text for chunk in chunks for text in chunk]


def test_one_look_serves_every_listener() -> None:
    async def work() -> None:
        fed, tails = Fed(["a"]), Tails(every_s=30)
        streams = [tails.follow(fed.source, 0) for _ in range(20)]
        for stream in streams:
            assert texts(await receive(stream, 1)) == ["a"]
        assert (tails.active, fed.reads) == (1, 1)
        for stream in streams:
            await stream.aclose()

    run(work)


def test_polls_only_while_somebody_listens() -> None:
    async def work() -> None:
        opened: list[str] = []
        fed = Fed(["a"])
        tails = Tails(every_s=0.01, opened=lambda: opened.append("a stream"), closed=opened.pop)
        streams = [tails.follow(fed.source, 0) for _ in range(2)]
        assert (fed.reads, tails.active) == (0, 0)
        for stream in streams:
            await receive(stream, 1)
        assert (tails.active, len(opened)) == (1, 2)
        await streams[0].aclose()
        reads = fed.reads
        await until(lambda: fed.reads > reads)
        await streams[1].aclose()
        assert (tails.active, len(opened)) == (0, 0)
        await until(lambda: len(asyncio.all_tasks()) == 1)  # this one: the poller is gone

    run(work)


def test_a_slow_listener_falls_behind_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "KEPT", 3)

    async def work() -> None:
        fed, tails = Fed(["0"]), Tails(every_s=0.002)
        slow, quick = tails.follow(fed.source, 0), tails.follow(fed.source, 0)
        await receive(slow, 1)
        await receive(quick, 1)
        for number in range(1, 20):
            fed.texts.append(str(number))
            assert texts(await receive(quick, 1)) == [str(number)]
        fed.end()
        assert texts(await receive(slow)) == [str(number) for number in range(1, 20)]

    run(work)


def test_a_place_beyond_the_end_disturbs_nobody_else() -> None:
    async def work() -> None:
        fed, tails = Fed(["a"]), Tails(every_s=0.01)
        lost = asyncio.create_task(receive(tails.follow(fed.source, 10**9)))
        await until(lambda: tails.active == 1)
        stream = tails.follow(fed.source, 0)
        assert texts(await receive(stream, 1)) == ["a"]
        fed.texts.append("b")
        assert texts(await receive(stream, 1)) == ["b"]
        fed.end()
        assert [message.event for message in await receive(stream)] == ["end"]
        assert [message.event for message in await lost] == ["end"]

    run(work)


def test_what_is_written_at_the_very_end_comes_before_the_end() -> None:
    """The last line is written, and the job ends, just as the tailer asks for the job's state."""

    async def work() -> None:
        fed = Fed(["a"])

        def state() -> JobState:
            if fed.reads and fed.state is JobState.RUNNING:
                fed.texts.append("last words")
                fed.end()
            return fed.state

        found = await receive(Tails(every_s=0.01).follow(Source("fed", fed.read, state), 0))
        assert (texts(found), found[-1].event) == (["a", "last words"], "end")

    run(work)


def test_a_source_that_does_not_answer_is_waited_for() -> None:
    async def work() -> None:
        fed, tails = Fed(["a"], failing=StorageUnavailable("down")), Tails(every_s=0.01)
        stream = tails.follow(fed.source, 0)
        task = asyncio.create_task(receive(stream, 1))
        await until(lambda: fed.reads > 3)
        assert not task.done()
        fed.failing = None
        assert texts(await task) == ["a"]
        await stream.aclose()

    run(work)


def test_nothing_is_lost_when_the_source_fails_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "KEPT", 1)

    async def work() -> None:
        fed, tails = Fed(["a"]), Tails(every_s=0.01)
        slow, quick = tails.follow(fed.source, 0), tails.follow(fed.source, 0)
        await receive(slow, 1)
        fed.texts += ["b", "c", "d"]
        fed.end()
        assert (await receive(quick))[-1].event == "end"
        fed.failing, reads = StorageUnavailable("down"), fed.reads
        task = asyncio.create_task(receive(slow))
        await until(lambda: fed.reads > reads + 2)
        fed.failing = None
        found = await task
        assert (texts(found), found[-1].event) == (["b", "c", "d"], "end")

    run(work)


def test_a_deleted_job_ends_its_streams() -> None:
    async def work() -> None:
        fed, tails = Fed(["a"]), Tails(every_s=0.01)
        stream = tails.follow(fed.source, 0)
        await receive(stream, 1)
        fed.failing = JobNotFound("gone")
        assert await receive(stream) == [Message('{"state":"DELETED"}', "end", None)]

    run(work)


def test_a_broken_source_breaks_the_stream_off(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        fed, tails = Fed(["a"]), Tails(every_s=0.01)
        stream = tails.follow(fed.source, 0)
        await receive(stream, 1)
        fed.failing = KeyError("a mistake of ours")
        assert await receive(stream) == []  # no end event: the client comes again
        assert tails.active == 0
        fed.failing = None
        again = tails.follow(fed.source, 1)
        fed.texts.append("b")
        assert texts(await receive(again, 1)) == ["b"]
        await again.aclose()

    run(work)
    assert "a mistake of ours" in caplog.text


def test_closing_ends_every_stream() -> None:
    async def work() -> None:
        fed, tails = Fed(["a"]), Tails(every_s=30)
        streams = [tails.follow(fed.source, 0) for _ in range(3)]
        tasks = [asyncio.create_task(receive(stream)) for stream in streams]
        await until(lambda: tails.active == 1 and fed.reads == 1)
        tails.close()
        for task in tasks:
            assert all(message.event != "end" for message in await task)
        assert tails.active == 0

    run(work)


def test_a_hanging_source_does_not_hold_the_end_up() -> None:
    hang, entered = threading.Event(), threading.Event()

    def read(after: int, limit: int) -> list[Item[int]]:
        entered.set()
        hang.wait(DEADLINE_S)
        return []

    async def work() -> None:
        tails = Tails(every_s=0.01)
        stream = tails.follow(Source("hung", read, lambda: JobState.RUNNING), 0)
        task = asyncio.create_task(receive(stream))
        await until(entered.is_set)
        tails.close()
        assert await task == []
        hang.set()  # the thread is left behind; let this test's loop end

    run(work)


def test_a_silent_stream_is_kept_alive() -> None:
    async def work() -> None:
        tails = Tails(every_s=0.01, keepalive_s=0.02)
        stream = tails.follow(Fed().source, 0)
        chunks = [await anext(stream) for _ in range(4)]
        assert b"retry: " in chunks[0]
        assert all(chunk.startswith(b":") and chunk.endswith(b"\n\n") for chunk in chunks)
        assert list(messages(chunks)) == []
        await stream.aclose()

    run(work)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)), min_size=2))
def test_cursors_survive_being_written_and_keep_their_order(numbers: list[tuple[int, int, int]]) -> None:
    cursors = [Cursor(*item) for item in numbers]
    assert [Cursor.parse(str(cursor)) for cursor in cursors] == cursors
    assert [cursor < cursors[0] for cursor in cursors] == [item < numbers[0] for item in numbers]
