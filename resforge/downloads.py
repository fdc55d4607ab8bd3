"""Fetching files by presigned URLs, each verified before it gets its name."""

import hashlib
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from resforge.errors import CorruptDownload, DownloadFailed
from resforge.resources import CheckpointDownload, DownloadPart
from resforge.storage import MANIFEST, CorruptCheckpoint, Manifest, Part

PAUSES = (0.5, 1.0, 2.0)


def fetch(download: CheckpointDownload, directory: Path) -> None:
    """Fetch every part of a checkpoint into `directory`.

    Raises:
        CorruptDownload: a file, or the manifest itself, is not what was written.
        DownloadFailed: object storage does not answer, or refuses.
    """
    try:
        # The manifest guards itself, so its sizes and digests are the ones to hold the files against.
        manifest = Manifest.parse(download.manifest.to_bytes())
    except CorruptCheckpoint as error:
        raise CorruptDownload(MANIFEST, str(error)) from error
    fetch_parts(manifest.parts, download.parts, directory)


def fetch_parts(wanted: Sequence[Part], found: Sequence[DownloadPart], directory: Path) -> None:
    """Fetch files whose sizes and digests are known, from where the API says that they are.

    Raises:
        CorruptDownload: a file is not what was written, or there is no address for it.
        DownloadFailed: object storage does not answer, or refuses.
    """
    addresses = {part.name: part for part in found}
    for part in wanted:
        name = PurePosixPath(part.name)
        if name.is_absolute() or ".." in name.parts or not name.parts:
            raise CorruptDownload(part.name, "its name leads out of the directory")
        if part.name not in addresses:
            raise CorruptDownload(part.name, "the API gave no address for it")
        _fetch(part, addresses[part.name], directory / name)


def _fetch(part: Part, address: DownloadPart, target: Path) -> None:
    import httpx

    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        for pause in (*PAUSES, None):
            try:
                size, digest = _stream(address.url, unfinished, part)
                break
            except httpx.TransportError as error:
                if pause is None:
                    where = urlsplit(address.url).netloc
                    raise DownloadFailed(f"{part.name}: object storage at {where} does not answer ({error})") from error
            time.sleep(pause)
        if size != part.size:
            raise CorruptDownload(part.name, f"it has {size:,} bytes where its manifest says {part.size:,}")
        if digest != part.sha256:
            raise CorruptDownload(part.name, f"its SHA-256 is {digest} where its manifest says {part.sha256}")
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _stream(url: str, path: Path, part: Part) -> tuple[int, str]:
    """Write what lies at `url` to a file; its size in bytes and SHA-256. Stops soon after it proves too long."""
    import httpx

    size, digest = 0, hashlib.sha256()
    # A client of its own: the API's key is for the API alone.
    with (
        httpx.Client(timeout=30.0, mounts={"all://127.0.0.1": None, "all://localhost": None}) as http,
        http.stream("GET", url) as answer,
        path.open("wb") as file,
    ):
        if not answer.is_success:
            answer.read()
            raise DownloadFailed(
                f"{part.name}: object storage at {urlsplit(url).netloc} answered {answer.status_code}: "
                f"{answer.text[:200]}"
            )
        for chunk in answer.iter_bytes(1 << 20):
            size += len(chunk)
            digest.update(chunk)
            file.write(chunk)
            if size > part.size:
                break
    return size, digest.hexdigest()
