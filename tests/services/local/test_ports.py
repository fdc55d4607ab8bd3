"""Picking ports."""

import socket
from collections.abc import Iterator

import pytest

from services.local.ports import HOST, PortTaken, is_free, pick


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as server:
        server.bind((HOST, 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_port_that_is_listened_on_is_not_free(taken: int) -> None:
    assert not is_free(taken)


def test_each_name_gets_a_free_port_of_its_own() -> None:
    names = [f"p{number}" for number in range(50)]
    chosen = pick(names, {}, {})
    assert list(chosen) == names
    assert len(set(chosen.values())) == 50
    assert all(20_000 <= port < 32_000 for port in chosen.values())


def test_ports_are_kept_where_they_are_free(taken: int) -> None:
    free = pick(["a"], {}, {})["a"]
    chosen = pick(["a", "b", "c"], {"a": free, "b": taken, "c": free}, {})
    assert chosen["a"] == free
    assert chosen["b"] != taken
    assert chosen["c"] != free


def test_a_wanted_port_is_given_or_refused(taken: int) -> None:
    free = pick(["a"], {}, {})["a"]
    assert pick(["a"], {"a": 20_001}, {"a": free}) == {"a": free}
    with pytest.raises(PortTaken, match=f"port {taken} on 127.0.0.1 is in use"):
        pick(["a"], {}, {"a": taken})
