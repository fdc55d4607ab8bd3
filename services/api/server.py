"""Running the app: uvicorn, told to end open event streams before it waits for connections to close."""

import socket
from typing import Any

import uvicorn
from fastapi import FastAPI

# After it what still runs is cancelled; streams have ended long before.
GRACE_S = 10


class Server(uvicorn.Server):
    """A server of one app that `create_app` made. `run()` blocks until a signal or `should_exit`."""

    def __init__(self, app: FastAPI, *, host: str, port: int, **options: Any) -> None:
        self.app = app
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
                log_config=None,  # who starts the process decides how it logs
                **options,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn waits for every connection before it tells the app of its end, and a stream has no end of its own.
        self.app.state.services.tails.close()
        await super().shutdown(sockets)
