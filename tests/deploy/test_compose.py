"""docker-compose.yml: valid, of parts that exist, with settings that our programs read, closed to other machines."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import compose_spec
import httpx
import pytest
import yaml

import resforge
from services.settings import Settings
from tests.s3 import free_port, rclone
from trainer.settings import TrainerSettings

ROOT = Path(__file__).parents[2]
PROMETHEUS: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())


def interpolated(value: Any, environment: dict[str, str]) -> Any:
    """Variables replaced as Compose does it: ${NAME:-default}, and $$ for one $."""
    if isinstance(value, dict):
        return {key: interpolated(part, environment) for key, part in value.items()}
    if isinstance(value, list):
        return [interpolated(part, environment) for part in value]
    if not isinstance(value, str):
        return value
    found = re.sub(r"(?<!\$)\$\{(\w+):-([^}]*)\}", lambda m: environment.get(m[1]) or m[2], value)
    assert not re.search(r"(?<!\$)\$(?!\$)", found), f"{value!r}: a variable without a default"
    return found.replace("$$", "$")


def document(**environment: str) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return interpolated(parsed, environment)


COMPOSE = document()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name for name, service in SERVICES.items() if service["image"].startswith("resforge/")}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_it_is_valid(device: str) -> None:
    compose_spec.PyCompose.from_json(json.dumps(document(RESFORGE_DEVICE=device)))


def test_the_validation_can_fail() -> None:
    wrong = COMPOSE | {"services": SERVICES | {"api": SERVICES["api"] | {"enviroment": {}}}}
    with pytest.raises(ValueError, match="enviroment"):
        compose_spec.PyCompose.from_json(json.dumps(wrong))


def test_all_parts_are_there() -> None:
    assert set(SERVICES) == {
        "keys", "postgres", "s3", "migrations", "api", "controller", "ray-head", "ray-worker", "prometheus", "grafana",
    }  # fmt: skip


def test_what_services_wait_for_exists_and_can_come_true() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            ends = SERVICES[other]["restart"] == "on-failure"
            assert (how["condition"] == "service_completed_successfully") == ends, f"{name} waits for {other}"
            if how["condition"] == "service_healthy":
                checked = SERVICES[other].get("healthcheck", {}).get("test") or other == "api"
                assert checked, f"{name} waits for {other}, which has no health check"


def test_volumes_and_files_exist() -> None:
    for name, service in SERVICES.items():
        for mount in service.get("volumes", ()):
            source = mount.partition(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists(), f"{name}: {source}"
                assert mount.endswith(":ro"), f"{name}: {mount}"
            else:
                assert source in COMPOSE["volumes"], f"{name}: {source}"
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).exists()


def test_every_setting_is_one_that_its_program_reads() -> None:
    control_plane = {f"RESFORGE_{name.upper()}" for name in Settings.model_fields}
    told = TrainerSettings.from_environment(
        {"RESFORGE_S3_ENDPOINT": "x", "RESFORGE_SCRATCH": "/y", "RESFORGE_WARM_S": "7.5"}
    )
    assert (told.s3_endpoint, told.scratch, told.warm_s) == ("x", Path("/y"), 7.5)
    trainer = {"RESFORGE_S3_ENDPOINT", "RESFORGE_SCRATCH", "RESFORGE_WARM_S"}
    for name, service in SERVICES.items():
        known = trainer if name.startswith("ray-") else control_plane
        given = {key for key in service.get("environment", {}) if key.startswith("RESFORGE_")}
        assert given <= known, name


@pytest.mark.parametrize("name", ["migrations", "api", "controller"])
def test_the_services_accept_their_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in SERVICES[name]["environment"].items():
        monkeypatch.setenv(key, value)
    settings = Settings()  # type: ignore[call-arg]  # the environment gives them
    assert settings.s3_bucket == "resforge"
    assert settings.ray_dashboard == "http://ray-head:8265"


def test_addresses_are_of_services_and_of_ports_they_serve() -> None:
    listening = {"postgres": 5432, "s3": 9000, "ray-head": 8265, "prometheus": 9090, "api": 8000, "controller": 9090}
    text = json.dumps(SERVICES) + json.dumps(PROMETHEUS)
    text += (ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text()
    found = set(re.findall(r"(?:://|@|\")([a-z][-a-z0-9]*):(\d{4})\b", text)) - {("127", "0")}
    assert {name for name, _ in found} == {"postgres", "s3", "ray-head", "prometheus"}
    assert {(name, int(port)) for name, port in found} <= set(listening.items()) | {("ray-head", 6379)}


def test_nothing_is_published_off_this_machine() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert published
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in published)
    assert not any(service.get("network_mode") == "host" or service.get("privileged") for service in SERVICES.values())


def test_images_are_pinned_and_ours_are_of_this_version() -> None:
    for name, service in SERVICES.items():
        tag = service["image"].rpartition(":")[2]
        assert re.search(r"\d+\.\d+", tag), f"{name}: {service['image']}"
        if name in OURS:
            assert tag.startswith(resforge.__version__)


def test_each_of_our_images_is_built_by_one_service() -> None:
    built = [service["image"] for service in SERVICES.values() if "build" in service]
    assert sorted(built) == sorted({SERVICES[name]["image"] for name in OURS})


def test_our_containers_are_hardened() -> None:
    for name in OURS:
        service = SERVICES[name]
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        if name != "keys":  # which gives the files that it makes to the others' user
            assert "user" not in service
            assert "cap_add" not in service


def test_no_secret_is_in_an_environment_or_a_command_line() -> None:
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY|CREDENTIALS|PGPASS", key):
                assert value.startswith("/keys/"), f"{name}: {key}"
        words = " ".join([*service.get("command", ()), *service.get("entrypoint", ())])
        assert not re.search(r"AWS_SECRET|password=", words)


def test_prometheus_scrapes_every_part_that_has_metrics_and_reads_the_charts_rules() -> None:
    found = {
        name: sd["port"] for job in PROMETHEUS["scrape_configs"] for sd in job["dns_sd_configs"] for name in sd["names"]
    }
    assert found == {"api": 8000, "controller": 9090, "ray-head": 8080, "ray-worker": 8080}
    for name in ("ray-head", "ray-worker"):
        assert f"--metrics-export-port={found[name]}" in SERVICES[name]["command"]
    [pattern] = PROMETHEUS["rule_files"]
    mounts = dict(mount.removesuffix(":ro").split(":")[::-1] for mount in SERVICES["prometheus"]["volumes"])
    assert mounts["/etc/prometheus/prometheus.yml"] == "./deploy/prometheus/prometheus.yml"
    assert mounts[f"/etc/prometheus/{Path(pattern).parent}"] == "./helm/resforge/rules"
    assert list((ROOT / "helm/resforge/rules").glob(Path(pattern).name))


def test_grafana_finds_its_dashboards_and_its_data_source() -> None:
    folder = ROOT / "deploy/grafana/provisioning"
    [provider] = yaml.safe_load((folder / "dashboards/resforge.yml").read_text())["providers"]
    [source] = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    mounts = dict(mount.removesuffix(":ro").split(":")[::-1] for mount in SERVICES["grafana"]["volumes"])
    assert mounts[provider["options"]["path"]] == "./helm/resforge/dashboards"
    assert mounts["/etc/grafana/provisioning"] == "./deploy/grafana/provisioning"
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / "helm/resforge/dashboards" / Path(home).name).exists()


# ---- the keys


def make_keys(folder: Path) -> None:
    subprocess.run([sys.executable, ROOT / "deploy/compose/keys.py", folder], check=True, timeout=30)


def test_keys_are_made_once_and_closed_to_others(tmp_path: Path) -> None:
    make_keys(tmp_path)
    first = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert first.keys() == {"aws", "rclone", "postgres", "pgpass", "ray"}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    make_keys(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == first


@pytest.mark.parametrize("lost", ["aws", "rclone", "postgres", "pgpass", "ray"])
def test_keys_that_were_half_made_become_whole(lost: str, tmp_path: Path) -> None:
    """A stop in the middle leaves a prefix of the files, or a part of one."""
    make_keys(tmp_path)
    kept = {path.name: path.read_text() for path in tmp_path.iterdir() if path.name != lost}
    (tmp_path / lost).rename((tmp_path / lost).with_suffix(".part"))
    make_keys(tmp_path)
    assert not (tmp_path / lost).with_suffix(".part").exists()
    assert {name: (tmp_path / name).read_text() for name in kept} == kept
    aws = dict(line.split(" = ") for line in (tmp_path / "aws").read_text().splitlines() if " = " in line)
    if lost != "aws":  # what the server was started with is what the others sign with
        assert (tmp_path / "rclone").read_text() == f'"{aws["aws_access_key_id"]},{aws["aws_secret_access_key"]}"'
    if lost != "postgres":
        assert (tmp_path / "pgpass").read_text().strip().endswith(":" + (tmp_path / "postgres").read_text())


def test_the_s3_server_starts_as_compose_starts_it_and_takes_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    from botocore.config import Config

    keys, data, port = tmp_path / "keys", tmp_path / "data", free_port()
    make_keys(keys)
    [script] = SERVICES["s3"]["command"]
    script = script.replace("/keys/", f"{keys}/").replace("/data", str(data)).replace(":9000", f"127.0.0.1:{port}")
    command = [*SERVICES["s3"]["entrypoint"], script]
    path = f"{Path(rclone()).parent}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(command, env={**os.environ, "PATH": path}, stderr=subprocess.DEVNULL) as server:
        try:
            with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as client:
                assert client.get(f"http://127.0.0.1:{port}/").is_client_error  # no signature
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
                monkeypatch.delenv(name, raising=False)
            monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys / "aws"))
            session = boto3.session.Session(region_name="us-east-1")
            s3 = session.client(
                "s3", endpoint_url=f"http://127.0.0.1:{port}", config=Config(s3={"addressing_style": "path"})
            )
            assert [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]] == ["resforge"]
        finally:
            server.kill()
