"""The folder of a stack: who may read it, what is refused, and the lock."""

import json
import os
import resource
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from services.local.home import AlreadyRunning, Home, HomeError, Identity, private_folder, read_json, write_private


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(tmp_path / "home")
    found.open()
    return found


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_is_readable_by_its_owner_alone(home: Home) -> None:
    home.save_identity(Identity(id="abc"))
    home.secret(home.ray_token)
    home.keep_s3_keys(("ACCESS", "secret"))
    with home.locked():
        pass
    folders = [home.path, home.objects, home.logs, home.work]
    files = [path for path in home.path.rglob("*") if path.is_file()]
    assert {mode(path) for path in folders} == {0o700}
    assert len(files) == 4
    assert {mode(path) for path in files} == {0o600}


def test_a_folder_that_others_could_enter_is_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    Home(tmp_path).open()
    assert mode(tmp_path) == 0o700


def test_a_folder_with_other_things_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(HomeError, match="holds other things"):
        Home(tmp_path).open()
    assert mode(tmp_path) == 0o755


def test_a_file_in_the_way_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError) as refused:
        Home(tmp_path / "file" / "home").open()
    assert str(refused.value) == f"can't use {tmp_path}/file/home: Not a directory"


def test_a_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(HomeError, match="no folder of yours"):
        private_folder(tmp_path / "link")


def test_a_full_disk_is_one_clear_line_and_leaves_the_old_file(home: Home) -> None:
    path = home.path / "stack.json"
    write_private(path, "old")
    # The limit on a file's size refuses a write as a full disk does, and needs no disk to fill.
    script = (
        "import sys; from pathlib import Path; from services.local.home import HomeError, write_private\n"
        "try: write_private(Path(sys.argv[1]), 'new' * 100)\n"
        "except HomeError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)),
    )
    assert done.stdout == f"can't use {path}: File too large\n"
    assert path.read_text() == "old"
    assert [item.name for item in home.path.iterdir() if item.name.startswith(".")] == []


def test_only_one_process_holds_a_home(home: Home) -> None:
    assert home.holder() is None
    with home.locked():
        assert home.holder() == os.getpid()
        write_private(home.connection, json.dumps({"url": "http://127.0.0.1:1"}))
        with pytest.raises(AlreadyRunning) as refused, home.locked():
            pass
        assert refused.value.pid == os.getpid()
        assert "http://127.0.0.1:1" in str(refused.value)
    assert home.holder() is None


def test_a_home_that_does_not_exist_has_no_holder(tmp_path: Path) -> None:
    assert Home(tmp_path / "none").holder() is None


def test_an_identity_and_secrets_stay_the_same(home: Home) -> None:
    assert home.load_identity().id != home.load_identity().id
    kept = Identity(id="abc", ports={"api": 20_000}, bucket="b", s3_endpoint="http://s3", external_s3=True)
    home.save_identity(kept)
    assert home.load_identity() == kept
    assert home.secret(home.ray_token) == home.secret(home.ray_token)


def test_an_identity_of_another_version_is_refused(home: Home) -> None:
    write_private(home.identity, '{"id": "abc", "moons": 2}')
    with pytest.raises(HomeError, match="not what this version"):
        home.load_identity()


def test_s3_keys_are_read_back(home: Home) -> None:
    assert home.s3_keys() is None
    home.keep_s3_keys(("ACCESS", "secret%with$signs"), token="token", region="eu-north-1")
    assert home.s3_keys() == ("ACCESS", "secret%with$signs")


def test_boto3_finds_keys_and_region_in_the_file(home: Home) -> None:
    home.keep_s3_keys(("ACCESS", "secret"), token="token", region="eu-north-1")
    script = (
        "import boto3; s = boto3.session.Session(); k = s.get_credentials()\n"
        "print(k.access_key, k.secret_key, k.token, s.region_name)"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    environment |= {"AWS_SHARED_CREDENTIALS_FILE": str(home.s3_credentials), "AWS_CONFIG_FILE": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["ACCESS", "secret", "token", "eu-north-1"]


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_file_that_is_no_object_reads_as_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    assert read_json(tmp_path / "file") is None


def test_ray_lies_under_a_short_home_and_beside_a_long_one() -> None:
    assert Home(Path("/root/.resforge")).ray_folder("0123456789abcdef") == Path("/root/.resforge/ray")
    long = Home(Path("/home/somebody/projects/deep/inside/of/a/tree/.demo")).ray_folder("0123456789abcdef")
    assert long.parent.parent in (Path(tempfile.gettempdir()), Path("/tmp"))
    socket = long / "session_2026-11-23_21-15-34_483731_4194303" / "sockets" / "dash_MetricsHead"
    assert len(str(socket)) <= 103
