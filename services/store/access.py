"""Who may do what with which data: projects, their API keys, and the registered data sets."""

import hashlib
import hmac
import secrets

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from resforge.jobs import DatasetInfo
from resforge.spec import AnalyseSpec, CommonSpec, EvaluateSpec, TrainSpec
from services.errors import DatasetNotFound, KeyNotFound, ProjectExists, ProjectNotFound, Unauthenticated
from services.store.base import StoreBase, insert
from services.store.tables import ApiKeyRow, DatasetRow, ProjectRow

ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"  # RFC 4648 base32, lower case
TOKEN_PREFIX = "rf"


def random_id(length: int = 12) -> str:
    """`length` random characters of base32, 5 bits each, that a DNS name may hold."""
    return "".join(secrets.choice(ID_ALPHABET) for _ in range(length))


class AccessStore(StoreBase):
    """Projects, keys and data sets."""

    def create_project(self, name: str) -> str:
        """Add a project and give back its name.

        Raises:
            ProjectExists: it is there already.
        """
        with self._write() as session:
            added = session.scalar(
                insert(session, ProjectRow)
                .values(name=name, created_at=self._now())
                .on_conflict_do_nothing()
                .returning(ProjectRow.name)
            )
        if added is None:
            raise ProjectExists(f"there is a project {name} already")
        return name

    def create_key(self, project: str, note: str = "") -> tuple[str, str]:
        """Make an API key for a project: its id, and the key itself, which can't be had again.

        Raises:
            ProjectNotFound: there is no such project.
        """
        key_id, secret = random_id(), secrets.token_hex(24)
        with self._write() as session:
            require_project(session.get(ProjectRow, project), project)
            session.add(
                ApiKeyRow(id=key_id, project=project, secret_sha256=_sha256(secret), note=note, created_at=self._now())
            )
        return key_id, f"{TOKEN_PREFIX}_{key_id}_{secret}"

    def revoke_key(self, key_id: str) -> None:
        """End a key's use; harmless when it was revoked before.

        Raises:
            KeyNotFound: there is no such key.
        """
        with self._write() as session:
            row = session.get(ApiKeyRow, key_id)
            if row is None:
                raise KeyNotFound(f"there is no API key with the id {key_id}")
            row.revoked_at = row.revoked_at or self._now()

    def authenticate(self, token: str) -> str:
        """The name of the project that an API key is for.

        Raises:
            Unauthenticated: it is no key of ours, or it was revoked. Which of them is not told.
        """
        prefix, _, rest = token.partition("_")
        key_id, _, secret = rest.partition("_")
        with self._read() as session:
            row = session.get(ApiKeyRow, key_id) if prefix == TOKEN_PREFIX else None
        if row is None or row.revoked_at is not None or not hmac.compare_digest(row.secret_sha256, _sha256(secret)):
            raise Unauthenticated("the API key is not valid")
        return row.project

    def register_dataset(self, dataset: DatasetInfo) -> None:
        """Add a data set, or replace the one of that name. Jobs that exist keep what they were submitted with."""
        values = dataset.model_dump()
        with self._write() as session:
            session.execute(
                insert(session, DatasetRow)
                .values(values)
                .on_conflict_do_update(index_elements=["name"], set_={k: v for k, v in values.items() if k != "name"})
            )

    def restore_dataset(self, dataset: DatasetInfo) -> bool:
        """Register a data set again that was removed, and tell whether its name was still free."""
        with self._write() as session:
            added = insert(session, DatasetRow).values(dataset.model_dump()).on_conflict_do_nothing()
            return session.scalar(added.returning(DatasetRow.name)) is not None

    def datasets(self, project: str | None = None) -> list[DatasetInfo]:
        """Every registered data set, by name; with `project`, those that it may name."""
        query = select(DatasetRow).order_by(DatasetRow.name)
        if project is not None:
            query = query.where(or_(DatasetRow.project.is_(None), DatasetRow.project == project))
        with self._read() as session:
            return [dataset_of(row) for row in session.scalars(query)]

    def dataset(self, name: str, project: str | None = None) -> DatasetInfo:
        """The data set of that name; with `project`, if that may name it.

        Raises:
            DatasetNotFound: none is registered.
        """
        with self._read() as session:
            row = session.get(DatasetRow, name)
        if row is None or (project is not None and row.project not in (None, project)):
            raise no_dataset(name)
        return dataset_of(row)


def hold_dataset(session: Session, spec: CommonSpec, dataset: DatasetInfo) -> None:
    """Keep the ingested data set that a spec names from being removed until this transaction ends.

    Raises:
        DatasetNotFound: it was removed since it was looked for.
    """
    names = isinstance(spec, TrainSpec | EvaluateSpec | AnalyseSpec) and spec.data.dataset is not None
    if not names or dataset.project is None:
        return
    row = select(DatasetRow.name).where(
        DatasetRow.name == dataset.name,
        DatasetRow.project == dataset.project,
        DatasetRow.location == dataset.location,  # it may be another by now
    )
    if session.scalar(row.with_for_update(read=True, key_share=True)) is None:
        raise no_dataset(dataset.name)


def no_dataset(name: str) -> DatasetNotFound:
    return DatasetNotFound(f"no dataset {name!r} is registered")


def put_ingested(session: Session, dataset: DatasetInfo) -> bool:
    """Register what a project's job has ingested, in place of what another of its jobs had under that name.

    Returns:
        False where the name is an operator's data set, or another project's; that stays.
    """
    values = dataset.model_dump()
    put = insert(session, DatasetRow).values(values)
    mine = DatasetRow.project == dataset.project
    replaced = put.on_conflict_do_update(
        index_elements=["name"], set_={k: v for k, v in values.items() if k != "name"}, where=mine
    )
    return session.scalar(replaced.returning(DatasetRow.name)) is not None


def require_project(row: ProjectRow | None, name: str) -> None:
    if row is None:
        raise ProjectNotFound(f"there is no project {name}")


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def dataset_of(row: DatasetRow) -> DatasetInfo:
    return DatasetInfo.model_validate({name: getattr(row, name) for name in DatasetInfo.model_fields})
