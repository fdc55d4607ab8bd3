"""The one class that reads and writes the database."""

# Interface agreed between the parts (to be implemented here, synchronous SQLAlchemy 2, SQLite and PostgreSQL):
#
# class JobStore:
#     def __init__(self, engine: Engine) -> None
#
#     # projects, keys, datasets
#     def create_project(self, name: str) -> str                      # project name; ProjectExists
#     def create_key(self, project: str, note: str = "") -> tuple[str, str]   # (key id, plaintext key); ProjectNotFound
#     def revoke_key(self, key_id: str) -> None                       # KeyNotFound
#     def authenticate(self, token: str) -> str                       # project's name; Unauthenticated
#     def register_dataset(self, dataset: DatasetInfo) -> None        # insert or replace
#     def datasets(self) -> list[DatasetInfo]
#     def dataset(self, name: str) -> DatasetInfo                     # DatasetNotFound
#
#     # for the API; every method takes the caller's project, and another project's job is JobNotFound
#     def submit(self, project: str, spec: JobSpec, dataset: DatasetInfo, *,
#                idempotency_key: str | None = None, request_hash: str = "") -> tuple[Job, bool]
#                                                                     # (job, created); IdempotencyConflict
#     def job(self, project: str, job_id: str) -> Job
#     def jobs(self, project: str, *, states: Sequence[JobState] = (), labels: Mapping[str, str] = {},
#              limit: int = 50, cursor: str | None = None) -> tuple[list[Job], str | None]   # newest first
#     def request_cancel(self, project: str, job_id: str, *, generation: int | None = None) -> Job
#                                                                     # GenerationMismatch, JobEnded
#     def delete_job(self, project: str, job_id: str) -> None         # JobNotTerminal
#     def attempts(self, project: str, job_id: str) -> list[Attempt]
#     def events(self, project: str, job_id: str, *, after: int = 0, limit: int = 100) -> list[Event]
#     def counts(self) -> dict[JobState, int]                         # all projects, for /metrics
#     def last_tick(self) -> datetime | None
#     def check(self) -> None                                         # for /readyz: a trivial query, and the schema is current
#
#     # for the controller
#     def acquire_lease(self, name: str, holder: str, ttl_s: float) -> Lease | None   # also renews one's own
#     def release_lease(self, lease: Lease) -> None
#     def live_jobs(self) -> list[JobRecord]                          # not terminal, oldest first, each with its newest attempt
#     def apply(self, lease: Lease, record: JobRecord, change: Change) -> JobRecord   # Stale, Fenced, IllegalTransition
#     def record_tick(self, lease: Lease) -> None                     # Fenced
