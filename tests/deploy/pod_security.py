"""The Pod Security Standard "restricted" (Kubernetes 1.34) on a pod's specification."""

from collections.abc import Iterator
from typing import Any

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SECCOMP = {"RuntimeDefault", "Localhost"}
HOST = ("hostNetwork", "hostPID", "hostIPC")


def violations(pod: dict[str, Any]) -> Iterator[str]:
    """What "restricted" would refuse, in words."""
    security = pod.get("securityContext") or {}
    for field in HOST:
        if pod.get(field):
            yield field
    for volume in pod.get("volumes", ()):
        for kind in volume.keys() - {"name"} - VOLUMES:
            yield f"volume {volume['name']} is a {kind}"
    if security.get("sysctls"):
        yield "sysctls"
    for container in [*pod.get("initContainers", ()), *pod["containers"], *pod.get("ephemeralContainers", ())]:
        yield from (f"{container['name']}: {fault}" for fault in _container(container, security))


def _container(container: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    own = container.get("securityContext") or {}

    def either(field: str) -> Any:
        return own.get(field, pod.get(field))

    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if either("runAsNonRoot") is not True:
        yield "runAsNonRoot is not true"
    if either("runAsUser") == 0:
        yield "runAsUser is 0"
    if (either("seccompProfile") or {}).get("type") not in SECCOMP:
        yield "no seccompProfile"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in capabilities.get("drop", ()):
        yield "capabilities are not dropped"
    for added in set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        yield f"capability {added}"
    if own.get("procMount", "Default") != "Default":
        yield "procMount"
    for port in container.get("ports", ()):
        if port.get("hostPort"):
            yield f"hostPort {port['hostPort']}"
