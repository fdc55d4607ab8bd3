"""Runs the supervisor over the programs in a JSON file, for tests; it takes over a whole process's children.

Arguments: the folder with programs.json. It writes status.json there at every change, and `ready` once all is ready.
"""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from services.local import processes, supervisor
from services.local.stack import Program
from services.local.supervisor import Part, StartFailed, Supervisor


async def main(folder: Path) -> int:
    supervisor.FIRST_PAUSE_S = 0.1
    document = json.loads((folder / "programs.json").read_text())
    environment = {**os.environ, processes.MARK: document["id"]}
    programs = [Program(**{"env": environment, **item}) for item in document["programs"]]
    status = folder / "status.json"

    def changed(parts: Sequence[Part]) -> None:
        fresh = status.with_suffix(".new")
        fresh.write_text(json.dumps({p.program.name: [p.state, p.pid, p.starts, p.message] for p in parts}))
        fresh.replace(status)

    found = Supervisor(
        programs,
        logs=folder,
        work=folder,
        strays=partial(processes.strays, document["id"], folder),
        changed=changed,
    )
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            found.hurry()
        stop.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, on_signal)
    try:
        await found.run(stop, (folder / "ready").touch)
    except StartFailed as error:
        print(f"failed: {error}")
        return 1
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sys.exit(asyncio.run(main(Path(sys.argv[1]))))
