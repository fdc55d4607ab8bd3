"""How a pod that is to end (a node drained, a job preempted) lets the training in it write a checkpoint first.

Kubernetes runs `python -m trainer.pod SECONDS` in each of an attempt's pods before it ends them (preStop). That says so
to the processes at work there, by a file in a folder that they share, and waits until none of them is left.
"""

import argparse
import fcntl
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.settings import TrainerSettings


@dataclass(frozen=True)
class Pod:
    """What the processes of one pod tell each other.

    Attributes:
        folder: in the pod's own file system, gone with it; None outside of pods, where nothing is told.
    """

    folder: Path | None = None

    @property
    def ends(self) -> bool:
        """Whether the pod is to end."""
        return self.folder is not None and (self.folder / "ends").exists()

    def hold(self) -> None:
        """Have the pod's end wait until this process ends.

        Not only until its own work is done: other pods' workers and the driver may need it for longer, to write a
        checkpoint and to see that all have ended.
        """
        if self.folder is not None:
            fcntl.flock(os.open(self._lock(), os.O_RDWR | os.O_CREAT), fcntl.LOCK_SH)  # closed with the process

    def end(self, within_s: int) -> bool:
        """Tell that the pod is to end; whether all that held it have ended within that many seconds.

        Raises:
            ValueError: this is no pod.
        """
        if self.folder is None:
            raise ValueError("RESFORGE_POD names no folder, so there is nobody to tell")
        lock = self._lock()
        (self.folder / "ends").touch()
        signal.signal(signal.SIGALRM, _too_late)
        signal.alarm(within_s)
        try:
            with lock.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
        except TimeoutError:
            return False
        finally:
            signal.alarm(0)
        return True

    def _lock(self) -> Path:
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / "at-work"


def _too_late(_number: int, _frame: object) -> None:
    raise TimeoutError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.pod", description=__doc__)
    parser.add_argument("seconds", type=int, help="how long to wait at most")
    seconds = parser.parse_args(argv).seconds
    if seconds < 1:
        parser.error(f"seconds: {seconds} is no time to wait; 1 or more")
    return 0 if Pod(TrainerSettings.from_environment().pod).end(seconds) else 1


if __name__ == "__main__":
    raise SystemExit(main())
