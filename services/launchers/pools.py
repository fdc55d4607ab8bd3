"""The pools file: what kinds of nodes an operator gives to jobs, and what a job must fit to run on them.

A job names a pool and nothing else of the cluster: images, node selectors, volumes and priorities are the operator's.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from resforge.spec import FieldProblem, Name, field_problems
from services.errors import InvalidPools
from services.launchers.base import Gang
from services.settings import Settings

_EPSILON = 1e-6  # fractions of a CPU add up with rounding errors
GPU = "nvidia.com/gpu"

# A qualified name of Kubernetes: an optional DNS prefix, and a name of at most 63 characters.
Qualified = Annotated[
    str, StringConstraints(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
]
LabelText = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")]
DnsName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]


class _Strict(BaseModel):
    # Strict, since YAML's `on` is True and would pass for a 1, and its `1.5` for a string.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Toleration(_Strict):
    """A taint that the pool's pods may live with; the fields are those of Kubernetes."""

    key: Qualified | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: LabelText | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _as_kubernetes_wants(self) -> Self:
        if self.key is None and self.operator != "Exists":
            raise _refusal("a toleration without a key needs the operator Exists", "operator")
        if self.operator == "Exists" and self.value is not None:
            raise _refusal("the operator Exists takes no value", "value")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise _refusal("toleration_seconds go with the effect NoExecute", "toleration_seconds")
        return self


class Cache(_Strict):
    """Where workers keep data that they may lose: a volume made for each pod, or a folder of the node."""

    size_gib: int | None = Field(
        default=None, ge=1, description="A volume of this size, made and removed with the pod."
    )
    storage_class: DnsName | None = Field(default=None, description="Of that volume. Left out: the cluster's default.")
    host_path: str | None = Field(
        default=None, description="A folder on each node, such as its NVMe. Pod Security `restricted` forbids it."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.size_gib is None) == (self.host_path is None):
            raise _refusal("give exactly one of size_gib and host_path", "size_gib")
        if self.host_path is not None and not (self.host_path.startswith("/") and self.host_path.strip("/")):
            raise _refusal("expected an absolute path below the root", "host_path")
        if self.host_path is not None and self.storage_class is not None:
            raise _refusal("a host_path has no storage_class", "storage_class")
        return self


class Pool(_Strict):
    """Nodes of one kind. Sizes are what a node has for workers, after what the system takes."""

    name: Name
    gpus_per_node: int = Field(default=0, ge=0, le=64)
    cpus_per_node: float = Field(gt=0, le=4096)
    memory_gib_per_node: float = Field(gt=0, le=65536)
    max_nodes: int = Field(ge=1, le=100_000, description="The most that there can ever be, by autoscaling too.")
    node_selector: dict[Qualified, LabelText] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    topology_key: Qualified | None = Field(
        default=None, description="A node label; a gang's workers are put where it has one value, if that is possible."
    )
    priority_class: DnsName | None = None
    queue: DnsName | None = Field(default=None, description="A Kueue LocalQueue, which then admits gangs whole.")
    shared_memory_gib: float = Field(default=8.0, ge=2, description="/dev/shm of a whole node's pod; NCCL needs it.")
    cache: Cache | None = None
    extra_resources: dict[Qualified, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, description="What else a whole node's pod asks for, such as vpc.amazonaws.com/efa: 4."
    )
    ipc_lock: bool = Field(default=False, description="The capability IPC_LOCK, which InfiniBand needs.")
    image: Annotated[str, StringConstraints(min_length=1)] | None = Field(
        default=None, description="Left out: the trainer image of the service."
    )
    start_deadline_s: int = Field(
        default=86_400, ge=60, description="An attempt whose pods do not all run so long after they were made is ended."
    )
    deadline_s: int | None = Field(default=None, ge=60, description="The longest that one attempt may run.")

    @model_validator(mode="after")
    def _memory_for_shm(self) -> Self:
        if self.shared_memory_gib >= self.memory_gib_per_node:
            raise _refusal("shared memory is part of the pod's memory, and must be less", "shared_memory_gib")
        return self

    def workers_per_node(self, gang: Gang) -> int:
        """How many of a gang's workers one node holds."""
        by_cpus = int((self.cpus_per_node + _EPSILON) / gang.cpus_per_worker)
        if not gang.gpus_per_worker:
            return by_cpus
        return min(by_cpus, self.gpus_per_node // gang.gpus_per_worker)

    def problem(self, gang: Gang) -> tuple[str, str] | None:
        """Why it can never hold a gang: the field of `scaling` that is too much, and a message; None if it can."""
        if gang.gpus_per_worker > self.gpus_per_node:
            return "gpus_per_worker", f"the nodes of pool {self.name} have no GPUs; gpus_per_worker must be 0"
        if gang.cpus_per_worker > self.cpus_per_node + _EPSILON:
            return (
                "cpus_per_worker",
                f"a node of pool {self.name} has {self.cpus_per_node:g} CPUs; cpus_per_worker must be at most that",
            )
        each = self.workers_per_node(gang)
        most = each * self.max_nodes
        if gang.workers <= most:
            return None
        holds = f"{each} such worker{'' if each == 1 else 's'}"
        message = f"pool {self.name} can have {self.max_nodes} nodes, and each holds {holds}: at most {most} workers"
        by_gpus = Gang(gang.workers, _EPSILON, gang.gpus_per_worker)
        if gang.gpus_per_worker and gang.workers <= self.workers_per_node(by_gpus) * self.max_nodes:
            least = self.cpus_per_node / math.ceil(gang.workers / self.max_nodes)
            message += f", or {gang.workers} with cpus_per_worker of at most {math.floor(least * 100) / 100:g}"
        return "workers", message


class Heads(_Strict):
    """Where the Ray heads of gangs run, which do no training: anywhere, if nothing is said."""

    node_selector: dict[Qualified, LabelText] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()


class Pools(_Strict):
    """The pools that there are. A job that names none is for the first."""

    pools: tuple[Pool, ...]
    heads: Heads = Heads()

    @model_validator(mode="after")
    def _some_with_names_of_their_own(self) -> Self:
        if not self.pools:
            raise _refusal("there must be a pool", "pools")
        names = [pool.name for pool in self.pools]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise _refusal(f"two pools are called {', '.join(twice)}; names must differ", "pools")
        return self

    @property
    def names(self) -> str:
        """For messages."""
        return ", ".join(pool.name for pool in self.pools)

    def find(self, name: str | None) -> Pool | None:
        """The pool of that name, or the first for None; None if there is no such pool."""
        if name is None:
            return self.pools[0]
        return next((pool for pool in self.pools if pool.name == name), None)

    def problem(self, name: str | None, gang: Gang) -> FieldProblem | None:
        """Why a gang can never run in the pool that its job names; None if it can."""
        pool = self.find(name)
        if pool is None:
            message = f"there is no pool of that name; there are: {self.names}"
            return FieldProblem(pointer="/scaling/pool", message=message, given=f'"{name}"')
        found = pool.problem(gang)
        if found is None:
            return None
        field, message = found
        others = [other.name for other in self.pools if other.problem(gang) is None]
        if others:
            message += f". Pools that can hold it: {', '.join(others)}"
        given = {"workers": gang.workers, "cpus_per_worker": gang.cpus_per_worker}.get(field, gang.gpus_per_worker)
        return FieldProblem(pointer=f"/scaling/{field}", message=message, given=f"{given:g}")


def load_pools(path: str | Path) -> Pools:
    """Read a pools file.

    Raises:
        InvalidPools: it can't be read or is no pools file; the message names the line and the field.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
    except OSError as error:
        raise InvalidPools(f"the pools file {path} can't be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidPools(f"the pools file {path} is no YAML: {error}") from error
    if not isinstance(document, dict):
        raise InvalidPools(f"the pools file {path} must be a mapping with the key `pools`")
    try:
        return Pools.model_validate(_tuples(document))
    except ValidationError as error:
        found = [
            f"line {_line(node, item.pointer)}, {item.pointer or 'the file'}: {item.message}"
            for item in field_problems(error, Pools)
        ]
        raise InvalidPools(f"the pools file {path} is not acceptable: {'; '.join(found)}") from error


def pools_of(settings: Settings) -> Pools | None:
    """The pools that jobs may name; None where the launcher has none.

    Raises:
        InvalidPools: the pools file can't be used.
    """
    if settings.launcher != "kuberay" or settings.pools_file is None:
        return None
    return load_pools(settings.pools_file)


def _tuples(value: Any) -> Any:
    """YAML's lists as tuples, which is what strict models take; a whole number for a fraction is taken by itself."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def _line(node: yaml.Node | None, pointer: str) -> int:
    """The line of the field that a pointer names, or of what is nearest around it."""
    line = 1
    for step in pointer.split("/")[1:]:
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == step.replace("~1", "/")), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and step.isdigit() and int(step) < len(node.value):
            node = node.value[int(step)]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _refusal(message: str, field: str) -> PydanticCustomError:
    return PydanticCustomError("pools", "{message}", {"message": message, "field": field})
