"""Whether the jobs whose checkpoints a job needs have come to their end: pure, over their states."""

from collections.abc import Mapping
from dataclasses import dataclass

from resforge.jobs import TERMINAL, JobState
from resforge.spec import CommonSpec


@dataclass(frozen=True)
class Sources:
    """What a job's sources keep it from: `pending` says what it waits for, `broken` why it can never start."""

    pending: str = ""
    broken: str = ""


def sources_of(spec: CommonSpec, states: Mapping[str, JobState]) -> Sources:
    """Look at a job's sources.

    `best` and `latest` are known once their job has ended, and count only if it has succeeded: what a failed training
    left is no trained network. A step may be named of any job. One that is gone was deleted.
    """
    pending = []
    for source in spec.sources:
        state = states.get(source.job)
        if state is None:
            return Sources(broken=f"Job {source.job}, whose checkpoint this one needs, was deleted.")
        if not source.ends_first:
            continue
        if state in TERMINAL and state is not JobState.SUCCEEDED:
            return Sources(
                broken=f"Job {source.job}, whose checkpoint this one needs, is {state}. A checkpoint that it left can "
                "be named by its step."
            )
        if state not in TERMINAL:
            pending.append(f"{source.job} ({state})")
    return Sources(pending=f"Waits for the end of {', '.join(dict.fromkeys(pending))}." if pending else "")
