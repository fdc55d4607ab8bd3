"""What a driver prints is shipped, with the worker that it came from."""

import os
import subprocess
import sys

import pytest

from resforge.metrics import LogLine
from resforge.storage import JobPrefix, Stream, read_stream
from tests.s3 import S3Server
from trainer.console import parse_line


@pytest.mark.parametrize(
    ("raw", "source", "line"),
    [
        (b"plain text\n", "driver", "plain text"),
        (b"\x1b[36m(RayTrainWorker pid=77)\x1b[0m rank 1 is here\n", "RayTrainWorker pid=77", "rank 1 is here"),
        (b"(RayTrainWorker pid=77, ip=10.0.0.2) text", "RayTrainWorker pid=77, ip=10.0.0.2", "text"),
        (b"\x1b[31mred\x1b[0m and \xff\xfe bytes\r\n", "driver", "red and \ufffd\ufffd bytes"),
        (b"(a note) in brackets\n", "driver", "(a note) in brackets"),
        (b"\n", "driver", ""),
    ],
)
def test_a_line_and_its_source(raw: bytes, source: str, line: str) -> None:
    parsed = parse_line(raw, 3)
    assert (parsed.source, parsed.line, parsed.attempt) == (source, line, 3)


def test_a_process_is_heard_down_to_its_file_descriptors_and_still_prints(s3: S3Server) -> None:
    program = """
import os, sys
from resforge.s3 import ObjectStore
from resforge.storage import JobPrefix
from trainer.console import shipped
from trainer.streams import Shipper
with Shipper(ObjectStore(sys.argv[1], endpoint=sys.argv[2]), JobPrefix.of("p", "heard").attempt(1)) as shipper:
    with shipped(shipper, 1):
        print("from python")
        os.write(2, b"from below python\\n")
        os.system("echo from a child")
        os.write(1, b"no newline at the end")
print("after")
"""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", program, s3.bucket, s3.endpoint],
        env=buffered | s3.environment, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    stored = read_stream(s3.store(), JobPrefix.of("p", "heard"), Stream.LOGS, [1])
    lines = {LogLine.model_validate_json(line).line for _, line in stored}
    assert lines == {"from python", "from below python", "from a child", "no newline at the end"}
    assert "from a child" in done.stdout
    assert "after" in done.stdout
    assert done.stderr == "from below python\n"
