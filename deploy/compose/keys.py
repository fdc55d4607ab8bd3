"""Make the stack's secrets in a volume, once: keys for S3, Ray's token, the database's password.

Run by docker-compose.yml before all else, as root, since the volume is root's. Each file is made whole or not at all,
and one that is there stays, so that a stack that is started again finds its data.
"""

import os
import secrets
import sys
from pathlib import Path

OWNER = 1000  # the user of our images


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    access, secret = secrets.token_hex(10), secrets.token_hex(20)
    password = secrets.token_urlsafe(24)
    # In an order in which what depends on another comes last; each reads what is there.
    _write(folder / "aws", f"[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n")
    lines = dict(line.split(" = ") for line in (folder / "aws").read_text().splitlines() if " = " in line)
    _write(folder / "rclone", f'"{lines["aws_access_key_id"]},{lines["aws_secret_access_key"]}"')
    _write(folder / "postgres", password)
    _write(folder / "pgpass", f"*:*:*:resforge:{(folder / 'postgres').read_text()}\n")
    _write(folder / "ray", secrets.token_hex(32))
    folder.chmod(0o755)


def _write(path: Path, text: str) -> None:
    if path.exists():
        return
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    if os.geteuid() == 0:
        os.chown(part, OWNER, OWNER)
    part.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
