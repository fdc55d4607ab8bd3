"""The one S3 client that both sides use: a few verbs over boto3, portable from AWS to small servers."""

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

DELETED_AT_ONCE = 1000  # S3's limit
FIRST_PAUSE_S = 0.5  # before an object whose bytes were cut is asked for again; the next are longer


class StorageError(Exception):
    """Object storage: {detail}"""


class StorageUnavailable(StorageError):
    """Object storage does not answer, or answers with a server's error. Trying again may help."""


class StorageRefused(StorageError):
    """Object storage refuses: wrong keys, no such bucket, no right to do this. Trying again will not help."""


class ObjectNotFound(StorageError):
    """There is no such object."""


@dataclass(frozen=True)
class ObjectInfo:
    """An object as a listing shows it. `size` is in bytes."""

    key: str
    size: int
    modified: datetime


@dataclass(frozen=True)
class Presigned:
    """An address to download one object from until `expires_at`, without keys."""

    url: str
    expires_at: datetime


def _refuse_no_answer(response_dict: dict[str, Any], **_: object) -> None:
    """Have boto3 try again where an answer is cut before its first byte, which it takes for an empty one: a listing of
    nothing, a deletion without errors."""
    if response_dict["status_code"] == 200 and not response_dict["body"]:
        response_dict["status_code"] = 500


class ObjectStore:
    """One bucket.

    Keys come from boto3's own chain (environment, files, instance roles); they never pass through our settings.
    Every method raises StorageUnavailable or StorageRefused; reading what is absent raises ObjectNotFound.

    Args:
        bucket: the bucket's name.
        endpoint: the server's URL; None for AWS.
        public_endpoint: the URL by which users reach the same server, for presigned URLs; None where it is the same.
        timeout_s: seconds to wait for a connection, and for each read of an answer.
        attempts: tries of one request in all, with growing pauses; and as many of an object whose bytes are cut.
        observe: told of each operation: its name, how it ended (ok, absent, refused, unavailable; error, of
            something else such as a full disk), and seconds.
    """

    def __init__(
        self,
        bucket: str,
        *,
        endpoint: str | None = None,
        public_endpoint: str | None = None,
        timeout_s: float = 10.0,
        attempts: int = 4,
        observe: Callable[[str, str, float], object] = lambda _operation, _outcome, _seconds: None,
    ) -> None:
        self.bucket = bucket
        self.endpoint = endpoint
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._observe = observe
        self._client = self._connect(endpoint)
        public = public_endpoint or endpoint
        self._signer = self._client if public == endpoint else self._connect(public)

    def _connect(self, endpoint: str | None) -> "S3Client":
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint,
            config=Config(
                signature_version="s3v4",
                connect_timeout=self._timeout_s,
                read_timeout=self._timeout_s,
                retries={"mode": "standard", "total_max_attempts": self._attempts},
                # Small servers know no trailing checksums; our manifests carry SHA-256 in any case.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path"} if endpoint else {},
            ),
        )
        for operation in ("ListObjectsV2", "DeleteObjects"):
            client.meta.events.register(f"before-parse.s3.{operation}", _refuse_no_answer)
        return client

    @contextmanager
    def _translated(self, operation: str | None) -> Iterator[None]:
        """Turn botocore's errors into ours, which say where and whether trying again may help, and time it if named."""
        where = f"{self.endpoint or 'S3'}, bucket {self.bucket}"
        began, outcome = time.perf_counter(), "error"
        try:
            yield
            outcome = "ok"
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = error.response.get("Error", {}).get("Code", "")
            if code in ("NoSuchKey", "404", "NotFound"):
                outcome = "absent"
                raise ObjectNotFound(f"{where}: {error}") from error
            if status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout"):
                outcome = "unavailable"
                raise StorageUnavailable(f"{where}: {error}") from error
            outcome = "refused"
            raise StorageRefused(f"{where}: {error}") from error
        except (BotoCoreError, HTTPError) as error:
            outcome = "unavailable"
            raise StorageUnavailable(f"{where}: {error}") from error
        finally:
            if operation:
                self._observe(operation, outcome, time.perf_counter() - began)

    def _read(self, key: str, take: "Callable[[StreamingBody], T]", **asked: str) -> T:
        """What `take` makes of an object's bytes, asked for anew where they, or those of an error's answer, are cut.

        boto3 tries again only what is refused or does not begin to be answered.
        """
        left, pause = self._attempts, FIRST_PAUSE_S
        while True:
            left -= 1
            try:
                body = self._client.get_object(Bucket=self.bucket, Key=key, **asked)["Body"]  # type: ignore[arg-type]
            except HTTPError:
                if not left:
                    raise
            else:
                try:
                    return take(body)
                except (BotoCoreError, HTTPError):
                    if not left:
                        raise
            time.sleep(random.uniform(0, pause))
            pause *= 2

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    def ensure_bucket(self) -> None:
        """Create the bucket unless it is there."""
        with self._translated("ensure_bucket"):
            try:
                self._client.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 404:
                    raise
                self._client.create_bucket(Bucket=self.bucket)

    def check(self) -> None:
        """Return when the bucket is there and may be listed."""
        with self._translated("check"):
            self._client.list_objects_v2(Bucket=self.bucket, MaxKeys=1)

    def put(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        with self._translated("put"):
            self._client.put_object(Bucket=self.bucket, Key=key, Body=data, ContentType=content_type)

    def upload(self, key: str, path: Path) -> None:
        """Write a file, in parts where it is large."""
        with self._translated("upload"):
            self._client.upload_file(str(path), self.bucket, key)

    def get(self, key: str) -> bytes:
        with self._translated("get"):
            return self._read(key, lambda body: body.read())

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        """`size` bytes of an object, 1 or more, from `offset` on; fewer where it ends before."""
        with self._translated("get"):
            data = self._read(key, lambda body: body.read(), Range=f"bytes={offset}-{offset + size - 1}")
        return data if len(data) <= size else data[offset : offset + size]  # from a server that knows no ranges

    def find(self, key: str) -> bytes | None:
        """The object's bytes, or None where there is no such object."""
        try:
            return self.get(key)
        except ObjectNotFound:
            return None

    def download(self, key: str, path: Path) -> str:
        """Write an object to a file and return the SHA-256 of what was written, in hex."""

        def write(body: "StreamingBody") -> str:
            digest = hashlib.sha256()
            with path.open("r+b" if path.exists() else "wb") as file:  # keeping blocks that were taken for it before
                for chunk in body.iter_chunks(1 << 20):
                    digest.update(chunk)
                    file.write(chunk)
                file.truncate()
            return digest.hexdigest()

        with self._translated("download"):
            return self._read(key, write)

    def list_objects(self, prefix: str, *, after: str | None = None) -> list[ObjectInfo]:
        """Every object under the prefix, by key; only those whose key is greater than `after`, if given."""
        with self._translated("list"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=prefix, StartAfter=after or ""
            )
            return [
                ObjectInfo(item["Key"], item["Size"], item["LastModified"])
                for page in pages
                for item in page.get("Contents", ())
            ]

    def list_folders(self, prefix: str) -> list[str]:
        """The names between the prefix, which ends in a slash or is empty, and the next slash; sorted."""
        with self._translated("list"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=prefix, Delimiter="/"
            )
            return sorted(
                item["Prefix"].removeprefix(prefix).rstrip("/")
                for page in pages
                for item in page.get("CommonPrefixes", ())
            )

    def delete(self, key: str) -> None:
        """Remove an object; one that is absent is no error."""
        with self._translated("delete"):
            self._client.delete_object(Bucket=self.bucket, Key=key)

    def delete_prefix(self, prefix: str) -> int:
        """Remove every object under the prefix and return how many there were."""
        keys = [item.key for item in self.list_objects(prefix)]
        for start in range(0, len(keys), DELETED_AT_ONCE):
            batch = keys[start : start + DELETED_AT_ONCE]
            with self._translated("delete"):
                answer = self._client.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True}
                )
            for failed in answer.get("Errors", ()):
                raise StorageRefused(
                    f"{self.endpoint or 'S3'}, bucket {self.bucket}: {failed.get('Key')} was not removed: "
                    f"{failed.get('Code')} {failed.get('Message')}"
                )
        return len(keys)

    def presign(self, key: str, *, expires_s: int = 3600) -> Presigned:
        """An address at the public endpoint from which anyone can GET the object until it expires."""
        with self._translated(None):  # signing asks nobody
            expires_at = datetime.now(UTC) + timedelta(seconds=expires_s)
            url = self._signer.generate_presigned_url(
                "get_object", Params={"Bucket": self.bucket, "Key": key}, ExpiresIn=expires_s
            )
            return Presigned(url, expires_at)
