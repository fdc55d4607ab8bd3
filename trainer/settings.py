"""Every setting of the trainer. Built from the environment in `__main__`, and handed down from there."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class TrainerSettings:
    """What a node tells its drivers and workers. Keys to object storage come by boto3's own chain instead.

    Attributes:
        s3_endpoint: URL of the S3 server; None for AWS.
        scratch: a folder for what may be lost: Ray Train's own files, cached data, and what torch has compiled, in
            `compiled`, which nothing bounds.
        collective_timeout_s: a collective operation that takes longer is an error.
        cache_gib: how much of a node's disk shards may take; None: most of what is free.
        pod: a folder that the processes of one pod share, where they learn that it is to end; None outside of pods.
        warm_s: how long the process that workers are forked from stays without work, in seconds; 0: there is none.
    """

    s3_endpoint: str | None = None
    scratch: Path = Path(tempfile.gettempdir()) / "resforge"
    collective_timeout_s: int = 600
    warm_s: float = 0.0
    pod: Path | None = None
    cache_gib: float | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read variables that begin with `RESFORGE_`."""
        return cls(
            s3_endpoint=environment.get("RESFORGE_S3_ENDPOINT") or None,
            scratch=Path(environment.get("RESFORGE_SCRATCH") or cls.scratch),
            cache_gib=float(environment["RESFORGE_CACHE_GIB"]) if environment.get("RESFORGE_CACHE_GIB") else None,
            pod=Path(environment["RESFORGE_POD"]) if environment.get("RESFORGE_POD") else None,
            warm_s=float(environment.get("RESFORGE_WARM_S") or cls.warm_s),
        )

    @property
    def cache_bytes(self) -> int | None:
        return None if self.cache_gib is None else int(self.cache_gib * 2**30)
