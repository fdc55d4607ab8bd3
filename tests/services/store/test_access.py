import hashlib

import pytest
from sqlalchemy import Engine, text

from resforge.jobs import DatasetInfo
from resforge.spec import TrainSpec
from services.errors import DatasetNotFound, KeyNotFound, ProjectExists, ProjectNotFound, Unauthenticated
from services.store import migrate
from services.store.builtin import BUILTIN
from services.store.store import JobStore

FOLDER = DatasetInfo(
    name="cats", format="folder", location="s3://data/cats", channels=3, classes=2, image_size=64, train_images=10
)


def test_a_project_is_made_once(store: JobStore) -> None:
    assert store.create_project("other") == "other"
    with pytest.raises(ProjectExists, match="other"):
        store.create_project("other")


def test_a_key_opens_its_own_project_and_no_other(store: JobStore, project: str) -> None:
    store.create_project("other")
    _, ours = store.create_key(project)
    _, theirs = store.create_key("other", note="for a test")
    assert store.authenticate(ours) == project
    assert store.authenticate(theirs) == "other"


def test_a_key_for_a_project_that_is_not_there_is_refused(store: JobStore) -> None:
    with pytest.raises(ProjectNotFound, match="nowhere"):
        store.create_key("nowhere")


def test_the_secret_is_nowhere_in_the_database(store: JobStore, project: str, engine: Engine) -> None:
    key_id, key = store.create_key(project)
    prefix, found_id, secret = key.split("_")
    assert (prefix, found_id) == ("rf", key_id)
    assert len(secret) * 4 >= 128  # hexadecimal: enough randomness that a plain hash is safe
    with engine.connect() as connection:
        [row] = connection.execute(text("SELECT * FROM api_keys")).mappings()
    assert secret not in " ".join(map(str, row.values()))
    assert row["secret_sha256"] == hashlib.sha256(secret.encode()).hexdigest()


def test_a_revoked_key_opens_nothing(store: JobStore, project: str) -> None:
    key_id, key = store.create_key(project)
    _, kept = store.create_key(project)
    store.revoke_key(key_id)
    store.revoke_key(key_id)
    with pytest.raises(Unauthenticated):
        store.authenticate(key)
    assert store.authenticate(kept) == project


def test_revoking_what_is_no_key_is_refused(store: JobStore) -> None:
    with pytest.raises(KeyNotFound, match="abc"):
        store.revoke_key("abc")


@pytest.mark.parametrize(
    "change",
    [
        lambda key: "",
        lambda key: "rf_",
        lambda key: "rf__",
        lambda key: key[:-1],
        lambda key: key + "0",
        lambda key: key.replace("rf_", "xx_"),
        lambda key: key.rsplit("_", 1)[0] + "_",
        lambda key: key.rsplit("_", 1)[0],
        lambda key: key.upper(),
        lambda key: f" {key}",
        lambda key: f"{key}\x00",
        lambda key: "rf_\x00_\x00",
        lambda key: "rf_\N{SNOWMAN}_\udcff",
    ],
)
def test_what_is_nearly_a_key_opens_nothing(store: JobStore, project: str, change: "type[str]") -> None:
    _, key = store.create_key(project)
    with pytest.raises(Unauthenticated):
        store.authenticate(change(key))


def test_a_dataset_is_found_as_it_was_registered(store: JobStore) -> None:
    store.register_dataset(FOLDER)
    assert store.dataset("cats") == FOLDER
    assert store.datasets() == sorted([FOLDER, *BUILTIN], key=lambda item: item.name)


def test_registering_again_replaces_the_dataset_but_not_what_jobs_hold(
    store: JobStore, project: str, spec: TrainSpec
) -> None:
    store.register_dataset(FOLDER)
    store.submit(project, spec, store.dataset("cats"))
    moved = FOLDER.model_copy(update={"location": "s3://elsewhere", "train_images": None})
    store.register_dataset(moved)
    assert store.dataset("cats") == moved
    assert [record.dataset for record in store.live_jobs()] == [FOLDER]


def test_a_dataset_that_is_not_registered_is_named(store: JobStore) -> None:
    with pytest.raises(DatasetNotFound, match="'dogs'"):
        store.dataset("dogs")


def test_migrating_again_leaves_an_operators_own_dataset_alone(store: JobStore, engine: Engine) -> None:
    own = BUILTIN[0].model_copy(update={"description": "our own digits", "train_images": 7})
    store.register_dataset(own)
    migrate(engine)
    assert store.dataset(own.name) == own
