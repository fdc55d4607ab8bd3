"""Asking a part of the stack whether it is ready."""

import asyncio
import itertools
from pathlib import Path

import httpx

from services.local.stack import HttpProbe, RayProbe

_PAUSES_S = (0.05, 0.05, 0.1, 0.1, 0.2)
_LAST_PAUSE_S = 0.3
_job_numbers = itertools.count(1)


def pause(attempt: int) -> float:
    """Seconds to wait after a failed look: short at first, since most parts come up in a moment."""
    return _PAUSES_S[attempt] if attempt < len(_PAUSES_S) else _LAST_PAUSE_S


async def is_ready(probe: HttpProbe | RayProbe, client: httpx.AsyncClient) -> bool:
    """One look. False where it does not answer, or not as it should."""
    try:
        if isinstance(probe, HttpProbe):
            answer = await client.get(probe.url, timeout=5.0)
            if probe.part is not None:
                return bool(answer.json()["parts"][probe.part] == "ready")
            return answer.status_code == httpx.codes.OK or not probe.ok_only
        return await _ray_runs_a_job(probe, client)
    except (httpx.HTTPError, ValueError, KeyError, TypeError):  # no answer, or one of something else
        return False


async def _ray_runs_a_job(probe: RayProbe, client: httpx.AsyncClient) -> bool:
    """Ray's dashboard answers seconds before a job can run, and for good where its agent's port is taken.

    The job stays in Ray's list: what is deleted before Ray's monitor saw its end comes back there as failed.
    """
    headers = {"Authorization": f"Bearer {_read(probe.token_path)}"}
    if (await client.get(f"{probe.dashboard}/api/version", headers=headers, timeout=5.0)).status_code != httpx.codes.OK:
        return False
    jobs = f"{probe.dashboard}/api/jobs/"
    name = f"resforge-probe-{next(_job_numbers)}"
    posted = await client.post(jobs, json={"entrypoint": "true", "submission_id": name}, headers=headers, timeout=60.0)
    if posted.status_code != httpx.codes.OK:
        return False
    while True:
        status = (await client.get(jobs + name, headers=headers, timeout=5.0)).json()["status"]
        if status not in ("PENDING", "RUNNING"):
            break
        await asyncio.sleep(0.1)
    return bool(status == "SUCCEEDED")


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()
