"""What the chart makes: valid objects that fit together, with no more rights and no more openings than they need."""

import io
import json
import re
import ssl
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.launchers.base import Gang, LaunchRequest
from services.launchers.pools import Heads, Pool, Pools, load_pools
from services.launchers.rayjob import HEAD_CPUS, HEAD_MEMORY_GIB, QUEUE, House, rayjob
from services.settings import Settings
from tests.deploy import schemas
from tests.deploy.conftest import rendered
from tests.deploy.helm import CHART, Object, merge, pod_templates, render
from tests.deploy.helm import objects as parsed
from tests.deploy.options import SCHEMA
from tests.deploy.pod_security import violations
from tests.deploy.valuesets import HEADS, LEAST, OUTSIDE, POOL, SETS
from tests.kube.schemas import needs_crds, pod_specs
from tests.kube.server import ROLE


def of(items: list[Object], kind: str, name: str | None = None) -> list[Object]:
    return [item for item in items if item["kind"] == kind and name in (None, item["metadata"]["name"])]


def the(items: list[Object], kind: str, name: str) -> Object:
    [found] = of(items, kind, name)
    return found


def containers(template: Object) -> list[Object]:
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


def namespace_of(item: Object) -> str:
    return str(item["metadata"].get("namespace", ""))


# ---- validity


@needs_crds
@pytest.mark.stack
@pytest.mark.parametrize("name", SETS)
def test_every_object_is_valid(name: str) -> None:
    items = rendered(name)
    assert items
    for item in items:
        try:
            schemas.validate(item)
        except schemas.Invalid as error:
            pytest.fail(f"{name}: {item['kind']}/{item['metadata']['name']}: {error}")


@needs_crds
@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "replicsa"), 1),
        ("Deployment", ("spec", "replicas"), "two"),
        ("ClusterQueue", ("spec", "queueingStrategy"), "Fair"),
        ("PodMonitor", ("spec", "podMetricsEndpoint"), []),
        ("HTTPRoute", ("spec", "hostname"), "a"),
    ],
)
def test_the_validation_can_fail(kind: str, path: tuple[str, ...], value: Any) -> None:
    item = of(rendered("outside"), kind)[0]
    for step in reversed(path):
        value = {step: value}
    with pytest.raises(schemas.Invalid):
        schemas.validate(merge(item, value))


def test_no_object_is_there_twice(objects: list[Object]) -> None:
    keys = [(item["kind"], namespace_of(item), item["metadata"]["name"]) for item in objects]
    assert len(keys) == len(set(keys))


def test_every_object_says_its_namespace(objects: list[Object]) -> None:
    without = {"Namespace", "ClusterQueue", "ResourceFlavor"}
    assert [item["kind"] for item in objects if item["kind"] not in without and not namespace_of(item)] == []


def test_only_known_kinds_are_made(objects: list[Object]) -> None:
    """Nothing for the whole cluster but queues and the jobs' namespace: an operator of one namespace can install it."""
    assert not {item["kind"] for item in objects} & {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}


def test_templates_write_no_null(objects: list[Object]) -> None:
    def nulls(value: Any, path: str) -> Iterator[str]:
        if value is None:
            yield path
        elif isinstance(value, dict):
            for key, part in value.items():
                yield from nulls(part, f"{path}/{key}")
        elif isinstance(value, list):
            for index, part in enumerate(value):
                yield from nulls(part, f"{path}/{index}")

    assert [path for item in objects for path in nulls(item, f"{item['kind']}/{item['metadata']['name']}")] == []


# ---- rights

READ = {"get", "list", "watch"}
ALLOWED = {
    ("ray.io", "rayjobs"): READ | {"create", "delete"},
    ("", "pods"): READ,
    ("", "events"): READ,
    ("kueue.x-k8s.io", "workloads"): READ,
}


def test_roles_allow_no_more_than_is_listed(objects: list[Object]) -> None:
    roles = of(objects, "Role")
    assert [role["metadata"]["name"] for role in roles] == ["resforge-controller"]
    for rule in roles[0]["rules"]:
        assert set(rule) == {"apiGroups", "resources", "verbs"}
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                assert set(rule["verbs"]) <= ALLOWED.get((group, resource), set()), f"{resource} of {group or 'core'}"


def test_the_role_is_the_one_that_the_launcher_is_tested_with() -> None:
    """The stand-in API server of the launcher's tests refuses all that this file does not allow."""
    assert the(rendered("gpu"), "Role", "resforge-controller")["rules"] == yaml.safe_load(ROLE.read_text())["rules"]


@pytest.mark.parametrize(
    ("name", "added", "removed", "told"),
    [
        ("outside", None, None, ""),
        ("least", None, None, ""),
        ("outside", None, ("workloads", "list"), "may not list kueue.x-k8s.io/workloads"),
        ("outside", ("rayjobs", "patch"), None, "may patch ray.io/rayjobs"),
        (
            "least",
            ("pods", "deletecollection"),
            ("events", "watch"),
            "may not watch /events; may deletecollection /pods",
        ),
    ],
)
def test_what_helm_test_asks_of_the_role(
    name: str,
    added: tuple[str, str] | None,
    removed: tuple[str, str] | None,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The program of the pod, asking a server that answers by the chart's Role, or by one that is not quite it."""
    allowed = {
        (group, resource, verb)
        for rule in the(rendered(name), "Role", "resforge-controller")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    groups = {"pods": "", "events": "", "rayjobs": "ray.io", "workloads": "kueue.x-k8s.io"}
    allowed |= {(groups[added[0]], *added)} if added else set()
    allowed -= {(groups[removed[0]], *removed)} if removed else set()

    def answer(request: urllib.request.Request, **_: Any) -> io.BytesIO:
        assert request.full_url == "https://10.0.0.1:443/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        assert isinstance(request.data, bytes)
        asked = json.loads(request.data)["spec"]["resourceAttributes"]
        assert asked["namespace"] == pod["args"][0]
        whole = f"{asked['resource']}/{asked['subresource']}" if asked["subresource"] else asked["resource"]
        may = (asked["group"], whole, asked["verb"]) in allowed
        return io.BytesIO(json.dumps({"status": {"allowed": may}}).encode())

    [pod] = the(rendered(name), "Pod", "resforge-test-rights")["spec"]["containers"]
    monkeypatch.setattr(urllib.request, "urlopen", answer)
    monkeypatch.setattr(ssl, "create_default_context", lambda **_: None)
    monkeypatch.setattr(Path, "read_text", lambda _: "a token")
    monkeypatch.setattr(sys, "argv", ["-c", *pod["args"]])
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    program = compile(pod["command"][2], "test_rights.py", "exec")
    if not told:
        exec(program, {})
        return
    with pytest.raises(SystemExit) as ended:
        exec(program, {})
    assert ended.value.code == f"in {pod['args'][0]} the controller's account {told}"


def test_the_controllers_role_holds_where_jobs_live_and_for_it_alone(objects: list[Object]) -> None:
    [controller] = [item for item in of(objects, "Deployment") if item["metadata"]["name"].endswith("-controller")]
    [container] = controller["spec"]["template"]["spec"]["containers"]
    where = {item["name"]: item.get("value") for item in container["env"]}["RESFORGE_KUBE_NAMESPACE"]
    [role], [binding] = of(objects, "Role"), of(objects, "RoleBinding")
    assert namespace_of(role) == namespace_of(binding) == where
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    account = controller["spec"]["template"]["spec"]["serviceAccountName"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "resforge"}]


def test_workloads_are_read_only_where_a_pool_has_a_queue() -> None:
    groups = [{group for rule in the(rendered(name), "Role", "resforge-controller")["rules"]
               for group in rule["apiGroups"]} for name in ("least", "gpu")]  # fmt: skip
    assert groups == [{"", "ray.io"}, {"", "ray.io", "kueue.x-k8s.io"}]


def test_only_the_controller_and_the_test_of_its_rights_get_a_token(objects: list[Object]) -> None:
    with_token = {
        name
        for name, template in pod_templates(objects)
        if template["spec"]["automountServiceAccountToken"] is not False
    }
    assert with_token == {"Deployment/resforge-controller", "Pod/resforge-test-rights"}
    assert all(item["automountServiceAccountToken"] is False for item in of(objects, "ServiceAccount"))


# ---- Pod Security


def test_every_pod_keeps_to_restricted(objects: list[Object]) -> None:
    found = [f"{name}: {fault}" for name, template in pod_templates(objects) for fault in violations(template["spec"])]
    assert found == []


def test_no_container_writes_to_its_root_file_system_or_lacks_a_limit(objects: list[Object]) -> None:
    for name, template in pod_templates(objects):
        for container in containers(template):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, name
            assert "memory" in container["resources"]["limits"], name


def test_the_jobs_namespace_is_restricted_unless_a_pool_is_excepted_by_name() -> None:
    def labels(values: dict[str, Any]) -> Object:
        space = of(
            parsed(render(merge(LEAST, {"jobs": {"namespace": "training", "createNamespace": True}}, values))),
            "Namespace",
        )
        return space[0]["metadata"]

    level = "pod-security.kubernetes.io/enforce"
    assert labels({})["labels"][level] == "restricted"
    excepted = labels({"pools": [POOL | {"ipc_lock": True}], "jobs": {"podSecurityExceptions": ["gpu"]}})
    assert excepted["labels"][level] == "privileged"
    assert excepted["labels"]["pod-security.kubernetes.io/warn"] == "restricted"
    assert excepted["annotations"]["resforge.dev/pod-security-exceptions"] == "gpu"


# ---- what fits together


def test_selectors_match_labels_of_pods(objects: list[Object]) -> None:
    pods = [template["metadata"]["labels"] for _, template in pod_templates(objects)]
    seen = 0
    for item in objects:
        spec = item.get("spec") or {}
        selectors = []
        if item["kind"] == "Service":
            selectors = [spec["selector"]]
        elif item["kind"] in ("Deployment", "StatefulSet"):
            labels = spec["template"]["metadata"]["labels"]
            assert spec["selector"]["matchLabels"].items() <= labels.items(), item["metadata"]["name"]
            selectors = [spec["selector"]["matchLabels"]] + [
                part["labelSelector"]["matchLabels"]
                for part in spec["template"]["spec"].get("topologySpreadConstraints", ())
            ]
        elif item["kind"] in ("PodDisruptionBudget", "PodMonitor") and "matchLabels" in spec["selector"]:
            selectors = [spec["selector"]["matchLabels"]]
        elif item["kind"] == "NetworkPolicy" and namespace_of(item) == "resforge":
            selectors = [spec["podSelector"].get("matchLabels") or {}]
        elif item["kind"] == "ServiceMonitor":
            wanted = spec["selector"]["matchLabels"].items()
            assert any(wanted <= service["metadata"]["labels"].items() for service in of(objects, "Service"))
        for selector in selectors:
            if any(key.startswith("ray.io/") for key in selector):
                continue
            assert any(selector.items() <= labels.items() for labels in pods), (item["kind"], item["metadata"]["name"])
            seen += 1
    assert seen >= 3


def test_no_two_workloads_select_the_same_pods(objects: list[Object]) -> None:
    pods = [(name, template["metadata"]["labels"]) for name, template in pod_templates(objects)]
    for item in of(objects, "Deployment") + of(objects, "StatefulSet") + of(objects, "Service"):
        selector = item["spec"].get("selector", {}).get("matchLabels") or item["spec"]["selector"]
        chosen = {name.partition("/")[2] for name, labels in pods if selector.items() <= labels.items()}
        assert chosen == {item["metadata"]["name"]}


def test_ports_that_are_named_exist(objects: list[Object]) -> None:
    ports = {
        name.partition("/")[2]: {port["name"]: port["containerPort"] for part in containers(template)
                                 for port in part.get("ports", ())}
        for name, template in pod_templates(objects)
    }  # fmt: skip
    for service in of(objects, "Service"):
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports[service["metadata"]["name"]]
    for name, template in pod_templates(objects):
        for container in containers(template):
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                for kind in ("httpGet", "tcpSocket"):
                    if kind in container.get(probe, {}):
                        assert container[probe][kind]["port"] in ports[name.partition("/")[2]]
    for monitor in of(objects, "PodMonitor"):
        if monitor["metadata"]["name"].endswith("-controller"):
            assert monitor["spec"]["podMetricsEndpoints"][0]["port"] in ports["resforge-controller"]
    services = {
        item["metadata"]["name"]: {p["name"]: p["port"] for p in item["spec"]["ports"]}
        for item in of(objects, "Service")
    }
    for monitor in of(objects, "ServiceMonitor"):
        assert monitor["spec"]["endpoints"][0]["port"] in services["resforge-api"]
    for ingress in of(objects, "Ingress"):
        for path in ingress["spec"]["rules"][0]["http"]["paths"]:
            target = path["backend"]["service"]
            assert target["port"]["name"] in services[target["name"]]
    for route in of(objects, "HTTPRoute"):
        [backend] = route["spec"]["rules"][0]["backendRefs"]
        assert backend["port"] in services[backend["name"]].values()
    opened = {
        (item["metadata"]["name"], port["port"])
        for item in of(objects, "NetworkPolicy")
        if namespace_of(item) == "resforge"
        for rule in item["spec"].get("ingress", ())
        for port in rule.get("ports", ())
    }
    for policy, port in opened:
        if policy in ports:
            assert port in ports[policy].values(), policy


def test_scaling_points_at_a_deployment_that_leaves_its_size_to_it(objects: list[Object]) -> None:
    for scaler in of(objects, "HorizontalPodAutoscaler"):
        target = the(objects, "Deployment", scaler["spec"]["scaleTargetRef"]["name"])
        assert "replicas" not in target["spec"]


def test_what_pods_refer_to_is_in_the_chart_or_named_in_the_values(objects: list[Object]) -> None:
    """Secrets, ConfigMaps and ServiceAccounts."""
    given = {"database", "resforge-database", "s3-keys", "trainer-s3-keys", "registry"}
    given |= {f"own-{name}" for name in ("api", "controller", "migrations", "jobs")}
    made = {(item["kind"], namespace_of(item), item["metadata"]["name"]) for item in objects}
    referred = 0
    for name, template in pod_templates(objects):
        spec = template["spec"]
        wanted = [("ServiceAccount", spec["serviceAccountName"])] if "serviceAccountName" in spec else []
        wanted += [("Secret", item["name"]) for item in spec.get("imagePullSecrets", ())]
        wanted += [("ConfigMap", item["configMap"]["name"]) for item in spec.get("volumes", ()) if "configMap" in item]
        for container in containers(template):
            for item in container.get("env", ()):
                if "valueFrom" in item:
                    [(kind, value)] = item["valueFrom"].items()
                    assert kind == "secretKeyRef", name
                    wanted.append(("Secret", value["name"]))
                    for secret in of(objects, "Secret", value["name"]):
                        assert value["key"] in secret["data"], name
        for kind, target in wanted:
            referred += 1
            assert target in given or (kind, "resforge", target) in made, f"{name}: {kind}/{target}"
    assert referred > 5


def test_the_trainers_secret_and_account_are_where_their_pods_are(objects: list[Object]) -> None:
    [container] = the(objects, "Deployment", "resforge-controller")["spec"]["template"]["spec"]["containers"]
    env = {item["name"]: item.get("value") for item in container["env"]}
    made = {(item["kind"], namespace_of(item), item["metadata"]["name"]) for item in objects}
    account = env["RESFORGE_RAY_SERVICE_ACCOUNT"]
    assert account == "own-jobs" or ("ServiceAccount", env["RESFORGE_KUBE_NAMESPACE"], account) in made
    if secret := env.get("RESFORGE_TRAINER_ENV_SECRET"):
        assert secret == "trainer-s3-keys" or ("Secret", env["RESFORGE_KUBE_NAMESPACE"], secret) in made


def test_no_secret_stands_in_plain_in_a_pod(objects: list[Object]) -> None:
    for name, template in pod_templates(objects):
        for container in containers(template):
            for item in container.get("env", ()):
                if (
                    re.search("PASSWORD|SECRET|ACCESS_KEY", item["name"])
                    and item["name"] != "RESFORGE_TRAINER_ENV_SECRET"
                ):
                    assert "valueFrom" in item, f"{name}: {item['name']}"
                assert not re.search(r"://[^/@\s]+:[^/@\s]+@", item.get("value", "")), f"{name}: {item['name']}"


def test_pods_take_no_variables_from_services(objects: list[Object]) -> None:
    """A Service named resforge would set RESFORGE_PORT to tcp://..., which is a setting of ours."""
    assert all(template["spec"]["enableServiceLinks"] is False for _, template in pod_templates(objects))


def test_every_setting_that_pods_get_is_one(objects: list[Object]) -> None:
    known = {f"RESFORGE_{name.upper()}" for name in Settings.model_fields}
    for name, template in pod_templates(objects):
        for container in containers(template):
            for item in container.get("env", ()):
                assert not item["name"].startswith("RESFORGE_") or item["name"] in known, f"{name}: {item['name']}"


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("component", ["api", "controller"])
def test_the_services_accept_their_environment(name: str, component: str, monkeypatch: pytest.MonkeyPatch) -> None:
    [container] = the(rendered(name), "Deployment", f"resforge-{component}")["spec"]["template"]["spec"]["containers"]
    for item in container["env"]:
        monkeypatch.setenv(item["name"], item.get("value", "postgresql+psycopg://secret"))
    settings = Settings()  # type: ignore[call-arg]  # the environment gives them
    assert settings.lease_s == 10
    assert settings.host == "0.0.0.0"


# ---- the network


def test_all_is_denied_first(objects: list[Object]) -> None:
    policies = of(objects, "NetworkPolicy")
    if not policies:
        return
    deny = {item["metadata"]["name"]: item["spec"] for item in policies if item["metadata"]["name"].endswith("deny")}
    assert set(deny) == {"resforge-deny", "resforge-jobs-deny"}
    for spec in deny.values():
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        assert "ingress" not in spec
        assert "egress" not in spec
    everyone = deny["resforge-deny"]["podSelector"]["matchLabels"].items()
    assert all(everyone <= template["metadata"]["labels"].items() for _, template in pod_templates(objects))


def test_a_namespace_of_their_own_denies_to_all_its_pods() -> None:
    assert the(rendered("dev"), "NetworkPolicy", "resforge-jobs-deny")["spec"]["podSelector"] == {}
    shared = the(rendered("inside"), "NetworkPolicy", "resforge-jobs-deny")["spec"]["podSelector"]
    assert shared == {"matchExpressions": [{"key": "ray.io/cluster", "operator": "Exists"}]}


def test_only_the_operator_reaches_a_ray_dashboard_from_outside_ray(objects: list[Object]) -> None:
    peers = []
    for item in of(objects, "NetworkPolicy"):
        if item["metadata"]["labels"]["app.kubernetes.io/component"] != "jobs":
            continue
        for rule in item["spec"].get("ingress", ()):
            assert rule["from"], "an empty `from` is everybody"
            ports = [port["port"] for port in rule.get("ports", ())]
            if not ports or 8265 in ports:
                peers += rule["from"]
    if not of(objects, "NetworkPolicy"):
        return
    assert peers == [
        {"podSelector": {"matchExpressions": [{"key": "ray.io/cluster", "operator": "Exists"}]}},
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-operator"}},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
        },
    ]


def test_the_controller_alone_reaches_kubernetes_and_trainers_reach_no_database() -> None:
    def reached(name: str) -> set[int]:
        rules = the(rendered("outside"), "NetworkPolicy", name)["spec"]["egress"]
        return {port["port"] for rule in rules for port in rule.get("ports", ())}

    assert reached("resforge-controller") == {53, 5432, 443, 6443}
    assert reached("resforge-api") == {53, 5432, 443}
    assert reached("resforge-migrations") == {53, 5432}
    assert reached("resforge-ray") == {53, 443}


# ---- change


def checksums(values: dict[str, Any]) -> dict[str, str]:
    [api] = of(
        parsed(render(values)),
        "Deployment",
    )[:1]
    return {
        key: value for key, value in api["spec"]["template"]["metadata"]["annotations"].items() if "checksum" in key
    }


def test_changed_pools_restart_the_services() -> None:
    before, after = checksums(LEAST), checksums(merge(LEAST, {"pools": [POOL]}))
    assert before.keys() == after.keys() == {"checksum/pools", "checksum/secrets"}
    assert before["checksum/pools"] != after["checksum/pools"]


def test_the_pools_file_says_what_the_values_say() -> None:
    config = the(rendered("outside"), "ConfigMap", "resforge-pools")
    assert yaml.safe_load(config["data"]["pools.yaml"]) == {"pools": [POOL], "heads": HEADS}


def test_migrations_are_a_hook_or_a_job_with_a_name_for_each_version() -> None:
    def job(values: dict[str, Any]) -> Object:
        return of(parsed(render(merge(LEAST, values))), "Job")[0]

    assert job({})["metadata"]["annotations"]["helm.sh/hook"] == "post-install,pre-upgrade"
    plain, other = (
        job({"migrations": {"hook": False}, "images": {"services": {"tag": tag}}}) for tag in ("1.0", "1.1")
    )
    assert "annotations" not in plain["metadata"]
    changes: list[dict[str, Any]] = [
        {}, {"commonLabels": {"a": "b"}}, {"objectStorage": {"bucket": "other"}}, {"images": {"pullSecrets": ["key"]}},
        {"pods": {"extraEnv": [{"name": "A", "value": "b"}]}},
    ]  # fmt: skip
    made = [plain, other, *(job(merge({"migrations": {"hook": False}}, change)) for change in changes)]
    pods = {item["metadata"]["name"]: item["spec"]["template"] for item in made}
    assert len(pods) == len(made)  # each pod has its own name, since a Job can't be changed
    assert job({"migrations": {"hook": False}}) == made[2]


def test_alerts_and_panels_lead_to_where_the_docs_are_served() -> None:
    monitoring = {"monitoring": {"enabled": True, "docsUrl": "https://docs.example.com/resforge/"}}
    objects = parsed(render(merge(LEAST, monitoring)))
    [rule] = of(objects, "PrometheusRule")
    links = [item["annotations"]["runbook_url"] for group in rule["spec"]["groups"] for item in group["rules"]
             if "alert" in item]  # fmt: skip
    assert links
    assert all(link.startswith("https://docs.example.com/resforge/operations.md#resforge") for link in links)
    boards = [
        text for item in of(objects, "ConfigMap") for name, text in item["data"].items() if name.endswith(".json")
    ]
    assert len(boards) == 3
    assert all("https://docs.example.com/resforge" in text and "/public/resforge-docs" not in text for text in boards)


def test_targets_have_the_names_that_the_rules_know() -> None:
    objects = parsed(render(merge(LEAST, {"monitoring": {"enabled": True}, "fullnameOverride": "training"})))
    endpoints = [
        endpoint
        for item in (*of(objects, "ServiceMonitor"), *of(objects, "PodMonitor"))
        for endpoint in item["spec"].get("endpoints") or item["spec"]["podMetricsEndpoints"]
    ]
    told = [rule["replacement"] for endpoint in endpoints for rule in endpoint["relabelings"]]
    assert len(told) == len(endpoints)
    assert set(told) == {"resforge-api", "resforge-controller", "resforge-ray"}


def test_selectors_stay_in_an_upgrade() -> None:
    def selectors(text: str) -> dict[str, Any]:
        return {f"{item['kind']}/{item['metadata']['name']}": item["spec"]["selector"] for item in parsed(text)
                if item["kind"] in ("Deployment", "StatefulSet")}  # fmt: skip

    changed = {"commonLabels": {"a": "b"}, "images": {"services": {"tag": "9.9"}}, "pods": {"labels": {"c": "d"}}}
    assert selectors(render(LEAST)) == selectors(render(merge(LEAST, changed), upgrade=True))


# ---- what the launcher makes of it


def env_of(name: str) -> dict[str, str]:
    [container] = the(rendered(name), "Deployment", "resforge-controller")["spec"]["template"]["spec"]["containers"]
    return {item["name"]: item.get("value", "") for item in container["env"]}


def pools_of(name: str, folder: Path) -> Pools:
    """The pools as the services read them."""
    path = folder / "pools.yaml"
    path.write_text(the(rendered(name), "ConfigMap", "resforge-pools")["data"]["pools.yaml"])
    return load_pools(path)


def jobs_of(name: str, folder: Path) -> list[tuple[Pool, Object]]:
    """A RayJob of two workers in each pool, with the settings that the chart gives."""
    env = env_of(name)
    house = House(
        namespace=env["RESFORGE_KUBE_NAMESPACE"],
        image=env["RESFORGE_TRAINER_IMAGE"],
        service_account=env["RESFORGE_RAY_SERVICE_ACCOUNT"],
        ray_version=env["RESFORGE_RAY_VERSION"],
        trainer_command="python -m trainer run",
        bucket=env["RESFORGE_S3_BUCKET"],
        env_secret=env.get("RESFORGE_TRAINER_ENV_SECRET"),
        s3_endpoint=env.get("RESFORGE_S3_ENDPOINT"),
        s3_region=env["RESFORGE_TRAINER_S3_REGION"],
    )
    made, pools = [], pools_of(name, folder)
    for pool in pools.pools:
        gang = Gang(2, 1.0, min(1, pool.gpus_per_node))
        request = LaunchRequest("job-1", "s3://training/demo/job", 1, gang=gang, pool=pool.name, project="demo")
        made.append((pool, rayjob(request, pool, house, pools.heads)))
    return made


def test_the_schema_knows_the_fields_of_a_pool() -> None:
    assert SCHEMA["properties"]["pools"]["items"]["properties"].keys() == Pool.model_fields.keys()
    assert SCHEMA["properties"]["heads"]["properties"].keys() == Heads.model_fields.keys()


@pytest.mark.parametrize("name", SETS)
def test_the_services_accept_the_pools(name: str, tmp_path: Path) -> None:
    assert [pool.name for pool in pools_of(name, tmp_path).pools]


@pytest.mark.parametrize("name", SETS)
def test_trainers_keep_to_restricted_but_in_pools_that_are_excepted_by_name(name: str, tmp_path: Path) -> None:
    excepted = {
        pool
        for space in of(rendered(name), "Namespace")
        for pool in space["metadata"]["annotations"].get("resforge.dev/pod-security-exceptions", "").split(",")
    }
    for pool, job in jobs_of(name, tmp_path):
        found = {fault for spec in pod_specs(job) for fault in violations(spec)}
        assert bool(found) == (pool.name in excepted), found
        assert found <= {"ray: capability IPC_LOCK", "volume scratch is a hostPath"}


@pytest.mark.parametrize("name", SETS)
def test_queues_that_jobs_go_to_are_there(name: str, tmp_path: Path) -> None:
    made = {(namespace_of(item), item["metadata"]["name"]) for item in of(rendered(name), "LocalQueue")}
    wanted = {
        (job["metadata"]["namespace"], job["metadata"]["labels"][QUEUE])
        for _, job in jobs_of(name, tmp_path)
        if QUEUE in job["metadata"]["labels"]
    }
    assert made == wanted


def test_the_quota_for_heads_is_what_heads_ask_for() -> None:
    [queue] = of(rendered("outside"), "ClusterQueue")
    heads = {
        part["name"]: part["nominalQuota"] for part in queue["spec"]["resourceGroups"][0]["flavors"][0]["resources"]
    }
    assert heads["cpu"] == f"{64 * HEAD_CPUS:g}"
    assert heads["memory"] == f"{64 * HEAD_MEMORY_GIB:g}Gi"


def test_heads_run_where_they_may_and_trainers_know_their_region(tmp_path: Path) -> None:
    [(_, job)] = jobs_of("outside", tmp_path)
    head, workers = pod_specs(job)
    toleration = {"key": "example.com/heads", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}
    assert head["nodeSelector"] == HEADS["node_selector"] != workers["nodeSelector"]
    assert toleration in head["tolerations"]
    assert toleration not in workers["tolerations"]
    for spec in (head, workers):
        assert {"name": "AWS_DEFAULT_REGION", "value": "eu-north-1"} in spec["containers"][0]["env"]
    flavors = {item["metadata"]["name"]: item["spec"] for item in of(rendered("outside"), "ResourceFlavor")}
    # Kueue matches pods with flavors by these, so workers never take what is for heads.
    assert flavors["resforge-heads"] == {"nodeLabels": HEADS["node_selector"], "tolerations": [toleration]}
    assert flavors["resforge-pool-gpu"]["nodeLabels"] == workers["nodeSelector"]
    assert "nodeSelector" not in pod_specs(jobs_of("least", tmp_path)[0][1])[0]


# ---- queues


def test_queues_hold_what_their_pools_have() -> None:
    items = rendered("outside")
    [queue] = of(items, "ClusterQueue")
    [group] = queue["spec"]["resourceGroups"]
    assert group["coveredResources"] == ["cpu", "memory", "nvidia.com/gpu", "rdma/hca"]
    quotas = {
        flavor["name"]: {part["name"]: part["nominalQuota"] for part in flavor["resources"]}
        for flavor in group["flavors"]
    }
    assert quotas == {
        "resforge-heads": {"cpu": "64", "memory": "256Gi", "nvidia.com/gpu": "0", "rdma/hca": "0"},
        "resforge-pool-gpu": {"cpu": "382000m", "memory": "4096000Mi", "nvidia.com/gpu": "32", "rdma/hca": "32"},
    }
    assert {item["metadata"]["name"] for item in of(items, "ResourceFlavor")} == set(quotas)
    [local] = of(items, "LocalQueue")
    assert (local["metadata"]["name"], namespace_of(local)) == ("gpu", "training")
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    assert queue["spec"]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "training"}


def test_pools_that_share_a_queue_share_its_cluster_queue() -> None:
    both = [POOL, POOL | {"name": "small", "node_selector": {"example.com/pool": "small"}, "extra_resources": {}}]
    items = parsed(render(merge(OUTSIDE, {"pools": both})))
    [queue] = of(items, "ClusterQueue")
    names = [flavor["name"] for flavor in queue["spec"]["resourceGroups"][0]["flavors"]]
    assert names == ["resforge-heads", "resforge-pool-gpu", "resforge-pool-small"]
    assert len(of(items, "LocalQueue")) == 1


# ---- monitoring


def test_alerts_are_the_files_in_the_chart() -> None:
    made = {item["metadata"]["name"]: item["spec"] for item in of(rendered("outside"), "PrometheusRule")}
    assert made == {
        f"resforge-{path.stem}": yaml.safe_load(path.read_text()) for path in (CHART / "rules").glob("*.yml")
    }
    assert made
    assert all(spec["groups"] for spec in made.values())


def test_dashboards_are_the_files_in_the_chart() -> None:
    made = {
        name: text
        for item in of(rendered("outside"), "ConfigMap")
        if item["metadata"]["labels"].get("grafana_dashboard") == "1"
        for name, text in item["data"].items()
    }
    assert made == {path.name: path.read_text() for path in (CHART / "dashboards").glob("*.json")}
    assert made


def test_what_tests_run_in_the_cluster_is_python() -> None:
    for name in ("test_api.py", "test_rights.py"):
        compile((CHART / "files" / name).read_text(), name, "exec")
