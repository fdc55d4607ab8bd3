"""A real S3 server, whose keys are in the environment for as long as a module's tests run."""

from collections.abc import Iterator

import pytest

from tests.s3 import S3Server, start_s3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as environment:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_EC2_METADATA_DISABLED"):
            environment.setenv(name, "")  # so that it is put back
        server = start_s3(tmp_path_factory.mktemp("s3"))
        server.store()
        yield server
        server.stop()
