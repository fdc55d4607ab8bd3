"""The RayJob of an attempt, by tables, and against the CRD's own schema."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from services.launchers.base import Gang, LaunchRequest
from services.launchers.pools import Cache, Heads, Pool, Toleration
from services.launchers.rayjob import ATTEMPT, JOB, PROJECT, QUEUE, House, rayjob
from tests.kube.schemas import needs_crds, pod_specs, rayjob_problems
from tests.services.launchers.example import RAYJOB, example
from tests.services.launchers.kube_stage import PLAIN, house, request
from tests.services.launchers.test_pools import WHOLE

GANGS = [Gang(64, 11, 1), Gang(12, 4, 1), Gang(1, 0.5, 0), Gang(7, 2.5, 0)]
POOLS = [
    Pool(**{**WHOLE, "tolerations": (), "max_nodes": 8}),
    Pool(**{**PLAIN.model_dump(), "cache": Cache(host_path="/nvme"), "max_nodes": 8}),
    PLAIN,
]


def made(pool: Pool = PLAIN, /, *, gang: Gang | None = GANGS[1], home: House | None = None, **changes: Any) -> Any:
    return rayjob(request(gang=gang, **changes), pool, home or house())


def head_and_workers(manifest: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    cluster = manifest["spec"]["rayClusterSpec"]
    return cluster["headGroupSpec"], cluster.get("workerGroupSpecs", [])


def requests(group: dict[str, Any]) -> dict[str, str]:
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    found: dict[str, str] = resources["requests"]
    return found


def test_what_every_rayjob_has() -> None:
    manifest = made()
    spec = manifest["spec"]
    assert manifest["metadata"]["name"] == spec["jobId"] == "job-abcdefgh2345-1"
    assert spec["entrypoint"] == "python -m trainer run s3://resforge/demo/job-abcdefgh2345 1"
    assert (spec["submissionMode"], spec["backoffLimit"], spec["shutdownAfterJobFinishes"]) == ("HTTPMode", 0, True)
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["preRunningDeadlineSeconds"] == 86_400
    assert not {"activeDeadlineSeconds", "suspend", "entrypointNumCpus", "runtimeEnvYAML"} & spec.keys()
    labels = {"resforge.dev/job-id": "job-abcdefgh2345", "resforge.dev/project": "demo", "resforge.dev/attempt": "1"}
    assert tuple(labels) == (JOB, PROJECT, ATTEMPT)
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    for place in (manifest, *(group["template"] for group in groups)):
        assert labels.items() <= place["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("gang", "groups"),
    [
        (Gang(64, 8, 1), [(8, "64000m", "8", "524288Mi")]),
        (Gang(12, 4, 1), [(1, "32000m", "8", "524288Mi"), (1, "16000m", "4", "262144Mi")]),
        (Gang(3, 4, 1), [(1, "12000m", "3", "196608Mi")]),
        (Gang(4, 40, 1), [(4, "40000m", "1", "524288Mi")]),  # the CPUs let one on a node
        (Gang(2, 0.25, 0), [(1, "500m", None, "4096Mi")]),
    ],
)
def test_workers_are_packed_onto_nodes(gang: Gang, groups: list[tuple[int, str, str | None, str]]) -> None:
    _, workers = head_and_workers(made(gang=gang))
    found = [
        (item["replicas"], *(requests(item).get(key) for key in ("cpu", "nvidia.com/gpu", "memory")))
        for item in workers
    ]
    assert found == groups
    assert all(item["replicas"] == item["minReplicas"] == item["maxReplicas"] for item in workers)


def test_a_trainings_head_has_nothing_for_work_and_stays_off_the_pool() -> None:
    pool = Pool(**{**WHOLE, "tolerations": (Toleration(key="gpu", operator="Exists"),), "queue": None})
    head, workers = head_and_workers(made(pool))
    assert (head["rayStartParams"]["num-cpus"], head["rayStartParams"]["num-gpus"]) == ("0", "0")
    assert requests(head) == {"cpu": "1000m", "memory": "4096Mi"}
    assert "nodeSelector" not in head["template"]["spec"]
    assert "key" not in str([item for item in head["template"]["spec"]["tolerations"] if item["key"] == "gpu"])
    spec = workers[0]["template"]["spec"]
    assert spec["nodeSelector"] == WHOLE["node_selector"]
    assert {"key": "gpu", "operator": "Exists"} in spec["tolerations"]


def test_heads_go_where_the_operator_wants_them_and_single_processes_to_their_pool() -> None:
    heads = Heads(node_selector={"role": "heads"}, tolerations=(Toleration(key="heads", operator="Exists"),))
    gang, alone = (
        rayjob(request(gang=gang, **needs), PLAIN, house(), heads)["spec"]["rayClusterSpec"]["headGroupSpec"]
        for gang, needs in ((GANGS[1], {}), (None, {"cpus": 1.0}))
    )
    spec = gang["template"]["spec"]
    assert spec["nodeSelector"] == {"role": "heads"}
    assert {"key": "heads", "operator": "Exists"} in spec["tolerations"]
    assert "nodeSelector" not in alone["template"]["spec"]
    assert "heads" not in str(alone["template"]["spec"]["tolerations"])


def test_a_job_of_one_process_is_a_head_with_what_it_needs() -> None:
    pool = Pool(**{**WHOLE, "tolerations": (), "queue": None})
    manifest = made(pool, gang=None, cpus=4.5, gpus=1)
    head, workers = head_and_workers(manifest)
    assert workers == []
    assert (manifest["spec"]["entrypointNumCpus"], manifest["spec"]["entrypointNumGpus"]) == (4.5, 1)
    assert (head["rayStartParams"]["num-cpus"], head["rayStartParams"]["num-gpus"]) == ("5", "1")
    assert (requests(head)["cpu"], requests(head)["nvidia.com/gpu"]) == ("5500m", "1")
    assert head["template"]["spec"]["nodeSelector"] == WHOLE["node_selector"]
    whole = made(PLAIN, gang=None, cpus=64.0, gpus=0)
    assert requests(head_and_workers(whole)[0])["cpu"] == "64000m"  # no node has more


def test_what_a_pool_adds() -> None:
    pool = Pool(**{**WHOLE, "tolerations": ()})
    manifest = made(pool, gang=Gang(12, 4, 1))
    assert manifest["metadata"]["labels"][QUEUE] == "training"
    assert (manifest["spec"]["suspend"], manifest["spec"]["activeDeadlineSeconds"]) == (True, 86400)
    full, rest = head_and_workers(manifest)[1]
    assert (requests(full)["vpc.amazonaws.com/efa"], requests(rest)["vpc.amazonaws.com/efa"]) == ("4", "2")
    spec = full["template"]["spec"]
    assert spec["priorityClassName"] == "training"
    assert spec["containers"][0]["image"] == WHOLE["image"]
    term = spec["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]["podAffinityTerm"]
    assert term["topologyKey"] == "topology.kubernetes.io/zone"
    volumes = {item["name"]: item for item in spec["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "65536Mi"}
    assert {"name": "RESFORGE_CACHE_GIB", "value": "450"} in spec["containers"][0]["env"]
    claim = volumes["scratch"]["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert (claim["storageClassName"], claim["resources"]["requests"]["storage"]) == ("local-nvme", "500Gi")


@pytest.mark.parametrize("ipc_lock", [False, True])
def test_pods_keep_to_pod_security_restricted(ipc_lock: bool) -> None:
    pool = Pool(**{**PLAIN.model_dump(), "ipc_lock": ipc_lock})
    head, *workers = pod_specs(made(pool))
    for spec in (head, *workers):
        context = spec["securityContext"]
        assert (context["runAsNonRoot"], context["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert all(volume.keys() <= {"name", "emptyDir", "ephemeral"} for volume in spec["volumes"])
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["capabilities"]["drop"] == ["ALL"]
            added = ["IPC_LOCK"] if ipc_lock and spec is not head else []  # the one exception, and a named one
            assert own["capabilities"].get("add", []) == added


def test_a_pod_that_is_to_end_gives_the_training_time_for_a_checkpoint() -> None:
    manifest = made(home=house(grace_s=90.5))
    for spec in pod_specs(manifest):
        (container,) = spec["containers"]
        assert container["lifecycle"] == {"preStop": {"exec": {"command": ["python", "-m", "trainer.pod", "91"]}}}
        assert spec["terminationGracePeriodSeconds"] == 91 + 10  # and Ray time to end afterwards
        folder = next(item["value"] for item in container["env"] if item["name"] == "RESFORGE_POD")
        mounts = {item["mountPath"]: item["name"] for item in container["volumeMounts"]}
        volumes = {item["name"]: item for item in spec["volumes"]}
        assert volumes[mounts[str(Path(folder).parent)]] == {"name": "tmp", "emptyDir": {}}  # the pod's own


def test_keys_come_by_a_secret_or_not_at_all() -> None:
    plain = pod_specs(made())[0]["containers"][0]
    assert "envFrom" not in plain
    assert {item["name"] for item in plain["env"]} == {"HOME", "RESFORGE_SCRATCH", "RESFORGE_POD"}
    told = pod_specs(made(home=house(env_secret="s3-keys", s3_endpoint="http://s3:9000", s3_region="eu-west-1")))[-1][
        "containers"
    ][0]
    assert told["envFrom"] == [{"secretRef": {"name": "s3-keys"}}]
    assert {"name": "RESFORGE_S3_ENDPOINT", "value": "http://s3:9000"} in told["env"]
    assert {"name": "AWS_DEFAULT_REGION", "value": "eu-west-1"} in told["env"]


def test_a_worker_that_no_node_holds() -> None:
    with pytest.raises(ValueError, match="no node of pool plain holds"):
        made(gang=Gang(1, 65, 0))


@needs_crds
@pytest.mark.parametrize(("pool", "gang"), list(itertools.product(POOLS, [*GANGS, None])))
def test_the_crd_and_the_operator_take_it(pool: Pool, gang: Gang | None) -> None:
    manifest = made(pool, gang=gang, **({} if gang else {"cpus": 2.0, "gpus": pool.gpus_per_node and 1}))
    assert rayjob_problems(manifest) == []


@needs_crds
def test_the_check_against_the_crd_finds_what_is_wrong() -> None:
    manifest = made()
    manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    manifest["spec"]["entryPoint"] = "x"
    del manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["groupName"]
    problems = "\n".join(rayjob_problems(manifest))
    for words in ("num-cpus", 'unknown field "spec.entryPoint"', "'groupName' is a required property"):
        assert words in problems


def test_the_example_in_the_documentation_is_current() -> None:
    assert RAYJOB.read_text() == example(), "run: python -m tests.services.launchers.example"


@needs_crds
def test_the_example_is_valid() -> None:
    import yaml

    manifest = yaml.safe_load(example())
    assert rayjob_problems(manifest) == []
    (group,) = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], requests(group)["nvidia.com/gpu"]) == (8, "8")


def test_a_request_names_its_job() -> None:
    assert LaunchRequest("job-abcdefgh2345-12", "s3://b/p/j", 12).job == "job-abcdefgh2345"
