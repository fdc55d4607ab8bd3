"""The chart's options: each does something, each wrong value is refused by name, and the schema is the reference."""

import re
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.helm import CHART, HelmError, binary, helm, lint, merge, render, render_many
from tests.deploy.options import SCHEMA, Option, get, nodes, options, others, put, resolved, wrong
from tests.deploy.valuesets import INSIDE, LEAST, OUTSIDE, PEERS, POOL, SETS

DEFAULTS: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
OPTIONS = list(options())

# Only an umbrella chart has a use for it.
NO_EFFECT = {"global"}

# What else must be so for an option to matter or for its other value to be acceptable.
TOGETHER: dict[str, dict[str, Any]] = {
    "jobs.podSecurityExceptions": {"pools": [POOL | {"ipc_lock": False}]},
    "pools.0.ipc_lock": {"jobs": {"podSecurityExceptions": ["gpu"]}},
    "pools.0.cache": {"jobs": {"podSecurityExceptions": ["gpu"]}},
    "api.autoscaling.minReplicas": {"api": {"autoscaling": {"maxReplicas": 9}}},
    "images.services.digest": {"images": {"services": {"tag": "1.0"}}},
    "api.serviceAccount.create": {"api": {"serviceAccount": {"annotations": {"a.example/b": "c"}}}},
}

# What the other value alone needs, since the two exclude each other.
INSTEAD: dict[str, dict[str, Any]] = {
    "postgresql.enabled": {"database": {"existingSecret": ""}},
    "s3.enabled": {"objectStorage": {"endpoint": "", "existingSecret": "", "trainerExistingSecret": ""}},
}


def base_of(option: Option) -> dict[str, Any]:
    """Of the two sets that turn everything on, the one in which the option matters."""
    head = option.path[0]
    inside = (head in ("postgresql", "s3") and option.path[1] != "enabled") or option.name in (
        "api.replicas",
        "clusterDomain",
    )
    base = INSIDE if inside else OUTSIDE
    return merge(DEFAULTS, base, {"nameOverride": "resforge"}, TOGETHER.get(option.name, {}))


def filled(option: Option) -> dict[str, Any]:
    """With all elements there that the option's path goes through."""
    base = base_of(option)
    for index, step in enumerate(option.path):
        if step == 0 and option.path[:index] == ("networkPolicy", "clients"):
            base = put(base, option.path[:index], PEERS)
        elif step == 0 and not get(base, option.path[:index]):
            base = put(base, option.path[:index], [{}])
    return base


@pytest.mark.stack
def test_every_option_changes_what_is_rendered() -> None:
    tried: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    for option in OPTIONS:
        if option.name in NO_EFFECT:
            continue
        base = filled(option)
        changed = others(option, get(base, option.path))
        assert changed, f"{option.name}: no other value is known; give the schema an example"
        instead = merge(base, INSTEAD.get(option.name, {}))
        tried += [(option.name, base, put(instead, option.path, value)) for value in changed]
    distinct: list[dict[str, Any]] = []
    for _, base, changed in tried:
        distinct += [item for item in (base, changed) if item not in distinct]
    again = [filled(option) for option in OPTIONS if option.name in ("logLevel", "s3.image")]
    texts = render_many(distinct + again)
    # Passwords that are made anew at each rendering are no difference.
    texts = [re.sub(r"(password|AWS_\w+): [A-Za-z0-9+/=]{20,}", r"\1: ...", text) for text in texts]
    # Nor is the hash of a pod with the chart's own name in a label, which differs for each of many in an umbrella.
    texts = [re.sub(r"-migrations-[0-9a-f]{8}\b", "-migrations-...", text) for text in texts]
    for index, base in enumerate(again):  # where nothing was changed, nothing differs
        assert texts[len(distinct) + index] == texts[distinct.index(base)]
    without = [name for name, base, changed in tried
               if texts[distinct.index(base)] == texts[distinct.index(changed)]]  # fmt: skip
    assert not without, ", ".join(without)
    assert len(tried) > 150


def test_every_wrong_value_is_refused_by_name() -> None:
    variants = [put(LEAST, option.path, wrong(option)) for option in OPTIONS]
    with pytest.raises(HelmError) as refused:
        render_many(variants)
    told = dict(re.findall(r"^(v\d+x):\n((?:(?!v\d+x:).*\n)*)", str(refused.value), re.MULTILINE))
    for index, option in enumerate(OPTIONS):
        assert f"- at '{option.pointer}'" in told.get(f"v{index}x", ""), option.name


def test_every_unknown_key_is_refused_by_name() -> None:
    variants = {}
    for option in OPTIONS:
        for length in range(len(option.path)):
            place = option.path[:length]
            if not place or isinstance(place[-1], int) or not (length < len(option.path) and option.path[length] == 0):
                variants[place] = put(LEAST, (*place, "unheard_of"), 1)
    with pytest.raises(HelmError) as refused:
        render_many(list(variants.values()))
    told = str(refused.value)
    for place in variants:
        pointer = "".join(f"/{step}" for step in place)
        assert re.search(rf"- at '{pointer}': .*'unheard_of' not allowed", told), pointer


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"api": {"replicas": 0}}, "'/api/replicas': minimum: got 0, want 1"),
        ({"api": {"service": {"port": 70000}}}, "'/api/service/port': maximum"),
        ({"logLevel": "LOUD"}, "'/logLevel': value must be one of"),
        ({"objectStorage": {"endpoint": "s3.internal"}}, "'/objectStorage/endpoint': 's3.internal' does not match"),
        ({"pools": []}, "'/pools': minItems"),
        ({"pools": [{"name": "gpu"}]}, "'/pools/0': missing properties 'cpus_per_node'"),
        ({"pools": [POOL | {"cache": {"size_gib": 1, "host_path": "/x"}}]}, "'/pools/0/cache'"),
        ({"pods": {"extraEnv": [{"name": "RESFORGE_PORT", "value": "1"}]}}, "'/pods/extraEnv/0/name'"),
        ({"images": {"services": {"digest": "sha256:12"}}}, "'/images/services/digest'"),
        ({"postgresql": {"storage": {"size": "ten"}}}, "'/postgresql/storage/size'"),
        ({"postgresql": {"image": "postgres"}}, "'/postgresql/image'"),
    ],
)  # fmt: skip
def test_a_value_out_of_bounds_is_refused_by_the_schema(values: dict[str, Any], named: str) -> None:
    with pytest.raises(HelmError, match=re.escape(named)):
        render(merge(LEAST, values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objectStorage": {"bucket": ""}}, "objectStorage.bucket: give the bucket"),
        ({"database": {"existingSecret": ""}}, "database.existingSecret: give the secret"),
        ({"postgresql": {"enabled": True}}, "database.existingSecret and postgresql.enabled: give one of them"),
        ({"s3": {"enabled": True}, "objectStorage": {"endpoint": "http://s3"}}, "leave one or the other out"),
        (
            {"objectStorage": {"existingSecret": "keys"}, "jobs": {"namespace": "training"}},
            "objectStorage.trainerExistingSecret: give the secret in the namespace training",
        ),
        ({"jobs": {"createNamespace": True}}, "jobs.createNamespace: jobs.namespace is the release's own"),
        ({"api": {"autoscaling": {"minReplicas": 9}}}, "api.autoscaling.minReplicas: 9 is more than maxReplicas"),
        ({"ingress": {"enabled": True}}, "ingress.host: give the name"),
        ({"gateway": {"enabled": True}}, "gateway.parentRefs: give the Gateway"),
        ({"images": {"trainer": {"tag": "latest"}}}, "images.trainer.tag: latest does not say what runs"),
        ({"pools": [POOL, POOL]}, "pools: two are named gpu"),
        ({"kueue": {"enabled": True}}, "pools: cpu has no queue"),
        ({"pools": [POOL | {"ipc_lock": True}]}, "pools: gpu has ipc_lock, which Pod Security"),
        (
            {"pools": [POOL | {"cache": {"host_path": "/mnt/nvme"}}]},
            "pools: gpu has cache.host_path, which Pod Security",
        ),
        ({"jobs": {"podSecurityExceptions": ["ib"]}}, "jobs.podSecurityExceptions: there is no pool ib; pools are cpu"),
    ],
)
def test_values_that_contradict_each_other_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(HelmError, match=re.escape(message)):
        render(merge(LEAST, values))


def test_the_schema_is_itself_valid_and_says_what_everything_is() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for path, schema in nodes():
        named = len(path) >= 2 and path[-2] == "properties"
        assert not named or resolved(schema).get("description"), f"{path} has no description"


def test_no_object_takes_what_is_not_described() -> None:
    open_ones = [
        path
        for path, schema in nodes()
        if (schema.get("type") == "object" or "properties" in schema) and "additionalProperties" not in schema
    ]
    assert open_ones == [("properties", "global")]


def test_examples_are_acceptable() -> None:
    for path, schema in nodes():
        for example in schema.get("examples", ()):
            jsonschema.Draft202012Validator({**schema, "$defs": SCHEMA["$defs"]}).validate(example)
            assert path


def test_every_option_has_a_default_in_values_yaml() -> None:
    known = DEFAULTS
    for option in OPTIONS:
        if 0 in option.path or option.name in NO_EFFECT:
            continue
        assert get(known, option.path) is not None, f"{option.name} is not in values.yaml"

    def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        if not isinstance(value, dict) or not value:
            return [path]
        return [leaf for key, part in value.items() for leaf in leaves(part, (*path, key))]

    described = {option.path for option in OPTIONS}
    for leaf in leaves(known):
        assert any(leaf[: len(path)] == path or path[: len(leaf)] == leaf for path in described), leaf


@pytest.mark.parametrize("name", SETS)
def test_lint_finds_nothing(name: str) -> None:
    files, values = SETS[name]
    told = lint(values, *files)
    assert "[ERROR]" not in told
    assert "[WARNING]" not in told


def test_the_chart_is_of_the_packages_version() -> None:
    import resforge

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == resforge.__version__


def test_notes_say_what_to_do_next() -> None:
    def notes(name: str) -> str:
        files, values = SETS[name]
        arguments: list[Any] = ["install", "resforge", CHART, "--dry-run=client", "--namespace", "ml"]
        for file in files:
            arguments += ["--values", CHART / file]
        text = helm(*arguments, "--values", "-", stdin=yaml.safe_dump(values))
        return text.partition("\nNOTES:\n")[2]

    dev, gpu, outside, bare = (notes(name) for name in ("dev", "gpu", "outside", "bare"))
    assert "helm test resforge -n ml" in dev
    assert "keys create default" in dev
    assert "port-forward service/resforge-api 8000:80" in dev
    assert "PostgreSQL runs inside this release" in dev
    assert "excepted from Pod Security" in gpu
    assert "h100-infiniband" in gpu
    assert "https://api.example.com" in outside
    assert "there are no NetworkPolicies" in bare


def test_helm_is_the_real_one() -> None:
    assert 'Version:"v4.' in helm("version")
    assert binary().stat().st_size > 10 << 20
