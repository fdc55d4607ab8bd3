"""One real stack for all end-to-end tests: API, controller, Ray, S3 server, as `resforge up` starts them."""

from collections.abc import Iterator

import pytest

from resforge.client import Client
from resforge.s3 import ObjectStore
from tests.embedded import EmbeddedStack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    stack = EmbeddedStack(tmp_path_factory.mktemp("e2e") / "home")
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@pytest.fixture
def client(stack: EmbeddedStack) -> Iterator[Client]:
    with stack.client() as client:
        yield client


@pytest.fixture
def objects(stack: EmbeddedStack, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The stack's bucket, read with the keys that connection.json gives to people."""
    connection = stack.connection
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", connection["s3_access_key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", connection["s3_secret_key"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return ObjectStore(connection["s3_bucket"], endpoint=connection["s3_endpoint"])
