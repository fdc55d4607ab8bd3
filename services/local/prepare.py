"""What must be there before the API starts: schema, a project with a key, data sets, S3 keys and the bucket."""

import contextlib
import time
from pathlib import Path

import boto3

from resforge.jobs import DatasetInfo
from resforge.s3 import ObjectStore, StorageError, StorageUnavailable
from services.errors import ProjectExists, ServiceError, Unauthenticated
from services.local.home import Home, HomeError, write_private
from services.store import connect, migrate
from services.store.store import JobStore

PROJECT = "default"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it
_S3_WITHIN_S = 30.0  # the embedded server starts beside this


def prepare(home: Home, *, database_url: str, bucket: str, endpoint: str | None, external_s3: bool) -> None:
    """Make everything ready. Harmless where it is so already; the API key stays the same.

    Raises:
        HomeError: something can't be made ready. The message says what, in one line.
    """
    if external_s3:
        keep_keys(home)
    try:
        _database(home, database_url)
    except ServiceError as error:
        raise HomeError(str(error)) from error
    store = ObjectStore(bucket, endpoint=endpoint, timeout_s=5.0, attempts=2)
    until = time.monotonic() + (0.0 if external_s3 else _S3_WITHIN_S)
    while True:
        try:
            return store.ensure_bucket()
        except StorageUnavailable as error:
            if time.monotonic() >= until:
                raise HomeError(str(error)) from error
            time.sleep(0.1)
        except StorageError as error:
            raise HomeError(str(error)) from error


def keep_keys(home: Home) -> None:
    """Write the keys that boto3 finds in the user's environment or files to where the stack's processes find them.

    Raises:
        HomeError: there are none, and none were kept by an earlier start.
    """
    session = boto3.session.Session()
    found = session.get_credentials()
    if found is None:
        if home.s3_keys() is None:
            raise HomeError(
                "no S3 keys were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile "
                "in ~/.aws/credentials"
            )
        return
    keys = found.get_frozen_credentials()
    home.keep_s3_keys(
        (keys.access_key or "", keys.secret_key or ""),
        token=keys.token,
        region=session.region_name or "us-east-1",
    )


def _database(home: Home, url: str) -> None:
    engine = connect(url)
    migrate(engine)
    store = JobStore(engine)
    with contextlib.suppress(ProjectExists):
        store.create_project(PROJECT)
    if not _key_is_valid(home, store):
        _, key = store.create_key(PROJECT, "made by resforge up")
        write_private(home.api_key, key)
    if FASHION_MNIST.is_dir():
        store.register_dataset(
            DatasetInfo(
                name="fashion-mnist",
                format="idx",
                location=str(FASHION_MNIST),
                channels=1,
                classes=10,
                image_size=28,
                train_images=60_000,
                test_images=10_000,
                description="Articles of clothing, 28x28 pixels (Zalando Research).",
            )
        )


def _key_is_valid(home: Home, store: JobStore) -> bool:
    if not home.api_key.exists():
        return False
    try:
        store.authenticate(home.api_key.read_text(encoding="ascii").strip())
    except Unauthenticated:  # the database was replaced
        return False
    return True
