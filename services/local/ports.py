"""Free ports on loopback for the parts of a stack."""

import random
import socket
from collections.abc import Iterable, Mapping

HOST = "127.0.0.1"
# Below the range that Linux (from 32768), macOS and BSD (from 49152) draw the ports of outgoing connections from: a
# part that dies finds its port still free when it starts again.
_RANGE = range(20_000, 32_000)


class PortTaken(Exception):
    """The port that was asked for is in use."""

    def __init__(self, port: int) -> None:
        super().__init__(f"port {port} on {HOST} is in use; name another, or none to have one picked")


def is_free(port: int) -> bool:
    """True where a server could listen on the port now."""
    with socket.socket() as probe:
        # As servers do, so that connections of a predecessor that linger in TIME_WAIT don't count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def pick(names: Iterable[str], kept: Mapping[str, int], wanted: Mapping[str, int]) -> dict[str, int]:
    """A free port for each name: the one wanted, else the one kept from before if it is free, else a new one.

    Raises:
        PortTaken: a wanted port is in use.
    """
    chosen: dict[str, int] = {}
    for name in names:
        if name in wanted:
            if not is_free(wanted[name]):
                raise PortTaken(wanted[name])
            chosen[name] = wanted[name]
        elif name in kept and kept[name] not in chosen.values() and is_free(kept[name]):
            chosen[name] = kept[name]
        else:
            chosen[name] = next(
                port
                for port in random.sample(_RANGE, len(_RANGE))
                if port not in chosen.values() and port not in wanted.values() and is_free(port)
            )
    return chosen
