"""What object storage's client tells of its operations, on a real server."""

from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from resforge import s3
from resforge.s3 import ObjectNotFound, ObjectStore, StorageRefused, StorageUnavailable
from tests.gate import Fault, gate_before
from tests.s3 import S3Server, free_port, start_s3

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = start_s3(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


def test_each_operation_is_told_with_how_it_ended(server: S3Server, tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []

    def observe(operation: str, outcome: str, seconds: float) -> None:
        assert 0 < seconds < 60
        told.append((operation, outcome))

    store = server.store(attempts=1, observe=observe)
    store.put("a/b", b"text")
    assert store.get("a/b") == b"text"
    with pytest.raises(ObjectNotFound):
        store.get("a/c")
    assert store.find("a/c") is None
    store.download("a/b", tmp_path / "b")
    with pytest.raises(FileNotFoundError):
        store.download("a/b", tmp_path / "absent" / "b")
    store.list_objects("a/")
    store.list_folders("")
    store.presign("a/b")  # asks nobody
    store.delete("a/b")
    assert told == [
        ("put", "ok"),
        ("get", "ok"),
        ("get", "absent"),
        ("get", "absent"),
        ("download", "ok"),
        ("download", "error"),
        ("list", "ok"),
        ("list", "ok"),
        ("delete", "ok"),
    ]


def test_silence_and_refusal_are_told_apart(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str]] = []
    observe = lambda operation, outcome, _: told.append((operation, outcome))  # noqa: E731
    server.store()  # which puts the keys into the environment
    silent = type(server)(server.root, server.bucket, free_port(), server.access_key, server.secret_key)
    with pytest.raises(StorageUnavailable):
        silent.store(attempts=1, observe=observe).check()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageRefused):
        ObjectStore(server.bucket, endpoint=server.endpoint, attempts=1, observe=observe).put("a", b"")
    assert told == [("check", "unavailable"), ("put", "refused")]


def test_an_answer_that_is_cut_is_asked_for_again(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "FIRST_PAUSE_S", 0.01)
    data = bytes(range(256)) * 10
    server.store().put("cut", data)
    path = tmp_path / "cut"
    path.write_bytes(bytes(2 * len(data)))  # longer than what is to be written
    told: list[tuple[str, str]] = []
    with gate_before(server) as gate:
        store = gate.s3.store(attempts=2, observe=lambda operation, outcome, _: told.append((operation, outcome)))
        reads: list[tuple[str, Callable[[], object], object]] = [
            ("get", lambda: store.get("cut"), data),
            ("get", lambda: store.get_range("cut", 10, 100), data[10:110]),
            ("download", lambda: (store.download("cut", path), path.read_bytes()), (sha256(data).hexdigest(), data)),
            ("list", lambda: [item.key for item in store.list_objects("cut")], ["cut"]),
        ]
        for fault in (Fault(cut=0), Fault(cut=500), Fault(503, "InternalError", cut=500, reset=True)):
            for operation, read, expected in reads:
                gate.mend()
                spoiled = gate.spoil("", [fault])
                assert read() == expected
                assert spoiled.seen == 2
                gate.mend()
                gate.spoil("", [], always=fault)
                with pytest.raises(StorageUnavailable):
                    read()
                assert told == [(operation, "ok"), (operation, "unavailable")]
                told.clear()
