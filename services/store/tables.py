"""The tables, the same on SQLite and PostgreSQL. services/store/migrations makes them; a test compares the two."""

from datetime import UTC, datetime
from typing import Any, ClassVar

from pydantic import BaseModel, TypeAdapter
from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from resforge.jobs import AttemptState, DatasetInfo, JobState, Reason
from resforge.metrics import EvalPoint, Progress
from resforge.spec import JobSpec
from resforge.studies.report import StudyDocument


class UtcDateTime(TypeDecorator[datetime]):
    """A time that is aware and in UTC in Python. SQLite has no such type, so there it is kept without its zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; give an aware time, such as datetime.now(UTC)")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


class Text(TypeDecorator[str]):
    """A string of any length. PostgreSQL can't hold NUL, which arrives in URLs and in what programs print."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: Dialect) -> str | None:
        return None if value is None else value.replace("\x00", "\N{REPLACEMENT CHARACTER}")


class Model(TypeDecorator[BaseModel]):
    """A frozen pydantic model, kept as JSON. Nothing queries inside it, and JSON keeps NUL, which JSONB refuses."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.adapter: TypeAdapter[Any] = TypeAdapter(model)

    def process_result_value(self, value: Any, _dialect: Dialect) -> BaseModel | None:
        return None if value is None else self.adapter.validate_python(value)


# Names, so that a later migration can refer to a constraint on either database.
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}

# SQLite gives rising ids by itself to a column declared INTEGER, and to no other.
RisingId = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text,
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
        list[int]: JSON,
        JobState: Text,
        AttemptState: Text,
        Reason: Text,
    }


class ProjectRow(Base):
    """A tenant: keys, jobs and a prefix in object storage of its own."""

    __tablename__ = "projects"

    name: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]


class ApiKeyRow(Base):
    """A key, of which only the secret's SHA-256 is kept. The secret is random, so no slow hash is needed."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str] = mapped_column(ForeignKey("projects.name", ondelete="CASCADE"))
    secret_sha256: Mapped[str]
    note: Mapped[str]
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class DatasetRow(Base):
    """A registered data set; the columns are the fields of DatasetInfo. One with a project is seen by that alone."""

    __tablename__ = "datasets"

    name: Mapped[str] = mapped_column(primary_key=True)
    format: Mapped[str]
    location: Mapped[str | None]
    channels: Mapped[int]
    classes: Mapped[int]
    image_size: Mapped[int]
    train_images: Mapped[int | None]
    test_images: Mapped[int | None]
    description: Mapped[str]
    project: Mapped[str | None]
    job: Mapped[str | None]


class JobRow(Base):
    """A job. `version` moves with every write and is what compare-and-set compares; `generation` only with people's."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str] = mapped_column(ForeignKey("projects.name", ondelete="CASCADE"))
    name: Mapped[str | None]
    state: Mapped[str]
    reason: Mapped[str | None]
    message: Mapped[str] = mapped_column(default="")
    spec: Mapped[JobSpec] = mapped_column(Model(JobSpec))
    dataset: Mapped[DatasetInfo] = mapped_column(Model(DatasetInfo))
    version: Mapped[int] = mapped_column(default=1)
    generation: Mapped[int] = mapped_column(default=1)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    attempts: Mapped[int] = mapped_column(default=0)
    error_failures: Mapped[int] = mapped_column(default=0)
    infrastructure_failures: Mapped[int] = mapped_column(default=0)
    events_cursor: Mapped[str]
    idempotency_key: Mapped[str | None]
    request_hash: Mapped[str]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    progress: Mapped[Progress | None] = mapped_column(Model(Progress))
    result: Mapped[EvalPoint | None] = mapped_column(Model(EvalPoint))

    __table_args__ = (
        UniqueConstraint("project", "idempotency_key"),
        Index(None, "project", "created_at", "id"),
        Index(None, "state", "created_at", "id"),
    )


class JobLabelRow(Base):
    """A job's labels once more, for filtering."""

    __tablename__ = "job_labels"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]

    __table_args__ = (Index(None, "key", "value", "job_id"),)


class StudyRow(Base):
    """A study: what it asks, and which jobs it consists of."""

    __tablename__ = "studies"

    id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str] = mapped_column(ForeignKey("projects.name", ondelete="CASCADE"))
    document: Mapped[StudyDocument] = mapped_column(Model(StudyDocument))
    idempotency_key: Mapped[str | None]
    request_hash: Mapped[str]
    created_at: Mapped[datetime]

    __table_args__ = (
        UniqueConstraint("project", "idempotency_key"),
        Index(None, "project", "created_at", "id"),
    )


class AttemptRow(Base):
    """An attempt, and what the controller remembers of it. The newest one's number is its job's `attempts`."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str]
    reason: Mapped[str | None]
    message: Mapped[str]
    resume_from: Mapped[list[int]]
    restarts: Mapped[int]
    created_at: Mapped[datetime]
    submitted_at: Mapped[datetime | None]
    running_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    beat: Mapped[int | None] = mapped_column(BigInteger)
    beat_seen_at: Mapped[datetime | None]
    stop_requested_at: Mapped[datetime | None]
    stop_reason: Mapped[str | None]
    admitted_at: Mapped[datetime | None]


class EventRow(Base):
    """An event. Whoever adds one has changed the job's row first, so within a job ids rise in the order of commits."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(RisingId, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    at: Mapped[datetime]
    type: Mapped[str]
    attempt: Mapped[int | None]
    before: Mapped[str | None]
    after: Mapped[str | None]
    reason: Mapped[str | None]
    message: Mapped[str]
    data: Mapped[dict[str, Any]]
    source: Mapped[str | None]

    __table_args__ = (
        UniqueConstraint("job_id", "source"),
        Index(None, "job_id", "id"),
        {"sqlite_autoincrement": True},  # an id is never given twice, also when the newest event was deleted
    )


class LeaseRow(Base):
    """The right to act as the controller. No holder: it was released."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str | None]
    epoch: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[datetime]
    last_tick_at: Mapped[datetime | None]
