"""What a stack consists of, decided without starting anything."""

from dataclasses import replace
from pathlib import Path

import pytest

from services.local import stack
from services.local.home import Home, HomeError, Identity
from services.local.lifecycle import Options, settle

SECRET = "s3cr3t" * 6
USER = {
    "PATH": "/bin",
    "HOME": "/home/u",
    "HTTP_PROXY": "http://proxy",
    "NO_PROXY": "intranet",
    "AWS_ACCESS_KEY_ID": "the-users",
    "AWS_PROFILE": "work",
    "RAY_ADDRESS": "10.0.0.1:6379",
    "RCLONE_VFS_CACHE_MODE": "full",
    "RESFORGE_DATABASE_URL": "postgresql://elsewhere",
}


@pytest.fixture
def config() -> stack.Config:
    return stack.Config(
        home=Home(Path("/h")),
        stack_id="abc",
        ports={name: 20_000 + index for index, name in enumerate(stack.PORTS)},
        cpus=3,
        bucket="resforge",
        endpoint="http://127.0.0.1:20001",
        external_s3=False,
        ray_folder=Path("/h/ray"),
        python="/v/bin/python",
        scripts=Path("/v/bin"),
        base_env=USER,
        s3_keys=("ACCESS", SECRET),
    )


@pytest.fixture
def external(config: stack.Config) -> stack.Config:
    return replace(config, external_s3=True, endpoint="https://s3.example.com", s3_keys=None)


def by_name(config: stack.Config) -> dict[str, stack.Program]:
    return {program.name: program for program in stack.programs(config)}


def test_the_parts_and_what_they_wait_for(config: stack.Config, external: stack.Config) -> None:
    assert {name: p.after for name, p in by_name(config).items()} == {
        "s3": (),
        "prepare": (),
        "ray": (),
        "api": ("prepare",),
        "controller": ("prepare",),
    }
    assert list(by_name(external)) == ["prepare", "ray", "api", "controller"]


def test_every_process_carries_the_mark_and_nothing_of_the_users_that_would_steer_it(config: stack.Config) -> None:
    for program in stack.programs(config):
        env = program.env
        assert env["RESFORGE_STACK"] == "abc"
        assert env["HOME"] == "/home/u"
        assert env["PATH"] == "/v/bin:/bin"
        assert env["NO_PROXY"] == "intranet,127.0.0.1,localhost"
        assert env["AWS_SHARED_CREDENTIALS_FILE"] == "/h/s3-credentials"
        assert not {"AWS_ACCESS_KEY_ID", "AWS_PROFILE", "RAY_ADDRESS", "RCLONE_VFS_CACHE_MODE"} & env.keys()
        assert env.get("RESFORGE_DATABASE_URL") in (None, "sqlite:////h/resforge.db")


def test_no_secret_is_in_a_command_line_and_only_the_s3_server_has_one_in_its_environment(config: stack.Config) -> None:
    for program in stack.programs(config):
        assert SECRET not in " ".join(program.argv)
        assert (SECRET in " ".join(program.env.values())) == (program.name == "s3")


def test_everything_is_told_to_listen_on_loopback(config: stack.Config) -> None:
    parts = by_name(config)
    assert parts["s3"].argv[parts["s3"].argv.index("--addr") + 1] == "127.0.0.1:20001"
    ray = parts["ray"]
    for option in ("--node-ip-address", "--dashboard-host"):
        assert ray.argv[ray.argv.index(option) + 1] == "127.0.0.1"
    assert ray.env["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert parts["api"].env["RESFORGE_HOST"] == "127.0.0.1"


def test_only_the_preparation_sees_the_users_own_keys_to_an_external_s3(external: stack.Config) -> None:
    parts = by_name(external)
    assert parts["prepare"].env["AWS_PROFILE"] == "work"
    assert "AWS_SHARED_CREDENTIALS_FILE" not in parts["prepare"].env
    for name in ("ray", "api", "controller"):
        assert "AWS_PROFILE" not in parts[name].env
        assert parts[name].env["AWS_SHARED_CREDENTIALS_FILE"] == "/h/s3-credentials"
        assert parts[name].env["RESFORGE_S3_ENDPOINT"] == "https://s3.example.com"


def test_on_aws_no_endpoint_is_named(external: stack.Config) -> None:
    for program in stack.programs(replace(external, endpoint=None)):
        assert "RESFORGE_S3_ENDPOINT" not in program.env
        assert "--s3-endpoint" not in program.argv


FRESH = Identity(id="x")
EMBEDDED = Identity(id="x", bucket="resforge")
EXTERNAL = Identity(id="x", bucket="b", s3_endpoint="http://s3", external_s3=True)
AWS = Identity(id="x", bucket="b", external_s3=True)


@pytest.mark.parametrize(
    ("before", "options", "after"),
    [
        (FRESH, Options(), EMBEDDED),
        (FRESH, Options(s3_endpoint="http://s3", bucket="b"), EXTERNAL),
        (FRESH, Options(bucket="b"), AWS),
        (FRESH, Options(s3_endpoint="http://s3"), replace(EXTERNAL, bucket="resforge")),
        (EMBEDDED, Options(), EMBEDDED),
        (EXTERNAL, Options(), EXTERNAL),
        (EXTERNAL, Options(s3_endpoint="http://s3"), EXTERNAL),
        (EXTERNAL, Options(s3_endpoint="http://s3", bucket="b"), EXTERNAL),
        (AWS, Options(bucket="b"), AWS),
    ],
)
def test_object_storage_is_decided_at_the_first_start(before: Identity, options: Options, after: Identity) -> None:
    assert settle(before, options) == after


@pytest.mark.parametrize(
    ("before", "options"),
    [
        (EMBEDDED, Options(s3_endpoint="http://s3")),
        (EMBEDDED, Options(bucket="resforge")),
        (EXTERNAL, Options(s3_endpoint="http://other")),
        (EXTERNAL, Options(s3_endpoint="http://s3", bucket="c")),
        (EXTERNAL, Options(bucket="b")),
        (AWS, Options(s3_endpoint="http://s3", bucket="b")),
    ],
)
def test_a_home_keeps_its_object_storage(before: Identity, options: Options) -> None:
    with pytest.raises(HomeError, match="the jobs of this home lie on"):
        settle(before, options)
