"""Where the workers of a gang meet: torch's TCPStore on rank 0, which trusts whoever connects.

By itself it listens on every interface of the machine. Here it listens on the address alone that the other workers are
given, which on a laptop is loopback.
"""

import importlib
import logging
import socket
from datetime import timedelta

from torch.distributed import TCPStore

logger = logging.getLogger(__name__)


def create_store(
    hostname: str, port: int, rank: int, world_size: int, timeout: timedelta, use_libuv: bool = True
) -> TCPStore:
    """Rank 0's store server with its client, or another rank's client; as torch makes them, but for the address."""
    listening = None
    if rank == 0:
        family, _, _, _, address = socket.getaddrinfo(hostname, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address, family=family).detach()
    return TCPStore(
        hostname,
        port,
        world_size,
        is_master=rank == 0,
        timeout=timeout,
        multi_tenant=True,
        master_listen_fd=listening,
        use_libuv=use_libuv,
    )


def use_this_store() -> None:
    """Let `init_process_group` of this process meet by `create_store`. Torch has no setting for the address.

    A torch that makes its store elsewhere is told of and left to listen as it likes: the job matters more.
    """
    module = importlib.import_module("torch.distributed.rendezvous")  # torch.distributed hides it behind a function
    if not hasattr(module, "_create_c10d_store"):
        logger.warning("this torch has no rendezvous._create_c10d_store; its store listens on every interface")
        return
    vars(module)["_create_c10d_store"] = create_store
