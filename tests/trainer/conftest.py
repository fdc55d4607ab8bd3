"""One real S3 server for the trainer's tests."""

from collections.abc import Iterator

import pytest

from tests.s3 import S3Server, start_s3


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = start_s3(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()
