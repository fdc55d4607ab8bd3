"""The pools file: what it may say, how it is refused, and which gangs a pool can hold."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services.errors import InvalidPools
from services.launchers.base import Gang
from services.launchers.pools import Pool, Pools, load_pools
from services.launchers.rayjob import pods_of

GPU_POOL: dict[str, Any] = {
    "name": "h100",
    "gpus_per_node": 8,
    "cpus_per_node": 96,
    "memory_gib_per_node": 1024,
    "max_nodes": 8,
}
WHOLE: dict[str, Any] = {
    **GPU_POOL,
    "node_selector": {"node.kubernetes.io/instance-type": "p5.48xlarge"},
    "tolerations": [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "team", "value": "vision", "effect": "NoExecute", "toleration_seconds": 60},
    ],
    "topology_key": "topology.kubernetes.io/zone",
    "priority_class": "training",
    "queue": "training",
    "shared_memory_gib": 64,
    "cache": {"size_gib": 500, "storage_class": "local-nvme"},
    "extra_resources": {"vpc.amazonaws.com/efa": 4},
    "ipc_lock": True,
    "image": "registry.example/trainer@sha256:0",
    "start_deadline_s": 3600,
    "deadline_s": 86400,
}
CPU_POOL = {"name": "cpu", "cpus_per_node": 16, "memory_gib_per_node": 64, "max_nodes": 2}


def load(tmp_path: Path, document: Any) -> Pools:
    path = tmp_path / "pools.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False))
    return load_pools(path)


def test_a_whole_file(tmp_path: Path) -> None:
    pools = load(tmp_path, {"pools": [WHOLE, CPU_POOL]})
    assert pools.names == "h100, cpu"
    first = pools.find(None)
    assert first is not None
    assert first.tolerations[1].toleration_seconds == 60
    assert pools.find("cpu") is pools.pools[1]
    assert pools.find("tpu") is None


@pytest.mark.parametrize(
    ("changes", "line", "words"),
    [
        ({"cpus_per_node": True}, 4, "/pools/0/cpus_per_node: "),
        ({"gpus_per_node": "8"}, 3, "/pools/0/gpus_per_node: "),
        ({"gpus_per_nodes": 8}, 7, "did you mean gpus_per_node?"),
        ({"max_nodes": 0}, 6, "greater than or equal to 1"),
        ({"name": "H 100"}, 2, "/pools/0/name: expected 1 to 63 lower-case"),
        ({"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}, 10, "takes no value"),
        ({"tolerations": [{"value": "b"}]}, 8, "/pools/0/tolerations/0/operator: a toleration without a key"),
        ({"tolerations": [{"key": "a", "toleration_seconds": 5}]}, 9, "go with the effect NoExecute"),
        ({"cache": {}}, 7, "exactly one of size_gib and host_path"),
        ({"cache": {"size_gib": 5, "host_path": "/nvme"}}, 8, "exactly one of size_gib and host_path"),
        ({"cache": {"host_path": "nvme"}}, 8, "an absolute path"),
        ({"shared_memory_gib": 2048}, 7, "must be less"),
        ({"extra_resources": {"vpc.amazonaws.com/efa": 0}}, 8, "greater than or equal to 1"),
        ({"memory_gib_per_node": float("inf")}, 5, "finite"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(tmp_path: Path, changes: dict[str, Any], line: int, words: str) -> None:
    with pytest.raises(InvalidPools) as caught:
        load(tmp_path, {"pools": [{**GPU_POOL, **changes}]})
    assert f"line {line}, " in str(caught.value)
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pools: []", "there must be a pool"),
        ("", "must be a mapping with the key `pools`"),
        ("- name: a", "must be a mapping with the key `pools`"),
        ("pools: [", "is no YAML"),
        ("pool: []", "unknown field; did you mean pools?"),
        (yaml.safe_dump({"pools": [CPU_POOL, CPU_POOL]}), "two pools are called cpu"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidPools) as caught:
        load(tmp_path, text)
    assert words in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidPools, match="can't be read: No such file"):
        load_pools(tmp_path / "pools.yaml")


POOLS = Pools(pools=(Pool(**GPU_POOL), Pool(**CPU_POOL)))


@pytest.mark.parametrize(
    ("pool", "gang", "pointer", "words"),
    [
        (None, Gang(64, 12, 1), None, ""),
        ("h100", Gang(65, 12, 1), "/scaling/workers", "at most 64 workers"),
        ("h100", Gang(64, 13, 1), "/scaling/workers", "at most 56 workers, or 64 with cpus_per_worker of at most 12"),
        ("cpu", Gang(1, 1, 1), "/scaling/gpus_per_worker", "must be 0. Pools that can hold it: h100"),
        ("cpu", Gang(1, 17, 0), "/scaling/cpus_per_worker", "has 16 CPUs; cpus_per_worker must be at most that"),
        ("cpu", Gang(33, 1, 0), "/scaling/workers", "at most 32 workers. Pools that can hold it: h100"),
        ("cpu", Gang(160, 0.2, 0), None, ""),
        ("tpu", Gang(1, 1, 0), "/scaling/pool", "there are: h100, cpu"),
    ],
)
def test_what_a_pool_could_never_hold(pool: str | None, gang: Gang, pointer: str | None, words: str) -> None:
    found = POOLS.problem(pool, gang)
    assert (found.pointer if found else None) == pointer
    assert words in (found.message if found else "")


@given(
    st.builds(Gang, st.integers(1, 300), st.sampled_from([0.1, 0.5, 1.0, 3.0, 12.0]), st.integers(0, 1)),
    st.sampled_from(POOLS.pools),
)
def test_a_gang_that_is_accepted_can_be_packed(gang: Gang, pool: Pool) -> None:
    if pool.problem(gang) is not None:
        return
    packed = pods_of(gang, pool)
    assert sum(pods * each for pods, each in packed) == gang.workers
    assert sum(pods for pods, _ in packed) <= pool.max_nodes
    for _, each in packed:
        assert each * gang.cpus_per_worker <= pool.cpus_per_node + 1e-3
        assert each * gang.gpus_per_worker <= pool.gpus_per_node
