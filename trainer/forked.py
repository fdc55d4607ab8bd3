"""A process for Ray's workers of a gang on CPUs, forked from the node's warm process instead of started anew.

Ray starts `python -m trainer.forked` where it would start `python` with a worker's arguments. That one asks the warm
process (trainer.warm) for a fork that runs them, lasts as long and ends alike. The fork has imported torch and
Lightning, and not Ray: the random numbers of which Ray makes its workers' names would be the same in every fork.
"""

import logging
import os
import runpy
import sys
from collections.abc import Sequence

from trainer import warm
from trainer.settings import TrainerSettings

logger = logging.getLogger(__name__)

COMMAND = f"{sys.executable} -m trainer.forked"
"""What Ray is told to start workers with. The path has to be the same on all nodes."""


def main(argv: Sequence[str]) -> None:
    """In the fork: be the worker that Ray asked for."""
    *command, life = argv
    warm.end_with(int(life))
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def launch(command: Sequence[str]) -> int:
    """In the process that Ray started. Without a warm process it becomes the worker itself."""
    settings = TrainerSettings.from_environment()
    life, _held = os.pipe()
    try:
        if settings.warm_s <= 0:
            raise warm.Cold("this node has no warm starts")
        code = warm.run(settings.scratch, settings.warm_s, "trainer.forked", command, life)
    except warm.Cold as cold:
        logger.warning("a cold start: %s", cold)
        os.execv(sys.executable, [sys.executable, *command])
    return 1 if code is None else code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
