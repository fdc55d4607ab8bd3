"""The few calls that the launcher makes to Kubernetes, and what their failures mean. lightkube does the rest."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx2
import msgspec
from lightkube import ConfigError, KubeConfig
from lightkube.config.client_adapter import ConnectionParams
from lightkube.config.models import Cluster, User
from lightkube.core.exceptions import ApiError
from lightkube.core.generic_client import GenericSyncClient, WatchDriver
from lightkube.generic_resource import GenericNamespacedResource, create_namespaced_resource

from services.launchers.rayjob import GROUP, KIND, PLURAL, VERSION

Kind = type[GenericNamespacedResource]
Object = dict[str, Any]

RAY_JOBS: Kind = create_namespaced_resource(GROUP, VERSION, KIND, PLURAL)
WORKLOADS: Kind = create_namespaced_resource("kueue.x-k8s.io", "v1beta2", "Workload", "workloads")
PODS: Kind = create_namespaced_resource("", "v1", "Pod", "pods")
EVENTS: Kind = create_namespaced_resource("", "v1", "Event", "events")

PAGE = 500  # objects in one answer of a list, as kubectl has it
WATCH_S = 120  # then the API server ends a watch, and it is taken up where it was
QUIET_S = WATCH_S + 30.0  # a watch that says nothing for longer, not even that it ends, is dead


class KubeError(Exception):
    """Kubernetes did not do what it was asked: {detail}

    Attributes:
        code: the HTTP status; 0 where there was no answer.
        retry_after_s: when to come back, if it said so.
    """

    def __init__(self, detail: str, code: int = 0, retry_after_s: float = 0.0) -> None:
        super().__init__(detail)
        self.code = code
        self.retry_after_s = retry_after_s


class Kube(GenericSyncClient):
    """One namespace of a Kubernetes API server. Every method raises KubeError and nothing else.

    Args:
        api: the API server's URL; left out, the cluster that this runs in, or else the kubeconfig's.
        namespace: left out, that of the configuration.
    """

    def __init__(self, api: str | None = None, namespace: str | None = None, *, timeout_s: float = 10.0) -> None:
        try:
            there = KubeConfig.from_one(cluster=Cluster(server=api), user=User()) if api else KubeConfig.from_env()
            config = there.get()
            assert config is not None
            timeout = httpx2.Timeout(timeout_s, connect=3.0)
            super().__init__(ConnectionParams(timeout=timeout), config, namespace=namespace)
        except (ConfigError, OSError, KeyError) as error:
            raise KubeError(f"no way to a Kubernetes API is known: {error}") from error
        self.server = config.cluster.server
        self._quiet = httpx2.Timeout(timeout_s, connect=3.0, read=QUIET_S)

    def close(self) -> None:
        super().close()

    def find(self, kind: Kind, name: str) -> Object | None:
        """The object of that name, read from the API server itself; None if it says that there is none."""
        try:
            return self._call("get", kind, name=name)
        except KubeError as error:
            if error.code == 404:
                return None
            raise

    def create(self, kind: Kind, manifest: Mapping[str, Any]) -> Object:
        created = self._call("post", kind, obj=kind(**manifest))
        assert created is not None
        return created

    def delete(self, kind: Kind, name: str) -> None:
        """Ask for an object's removal; harmless if it is gone. What it owns is removed after it."""
        try:
            self._call("delete", kind, name=name, params={"propagationPolicy": "Background"})
        except KubeError as error:
            if error.code != 404:
                raise

    def select(self, kind: Kind, *, labels: str = "", fields: str = "") -> tuple[str, list[Object]]:
        """All objects that the selectors match, and the resource version at which that was so."""
        params = {"limit": str(PAGE), "labelSelector": labels or None, "fieldSelector": fields or None}
        version, found = "", list[Object]()
        with _told(self.server):
            request = self.prepare_request("list", kind, params=params)
            for version_here, items in self.list_chunks(request):
                version = version_here or ""
                found += items
        return version, found

    def follow(self, kind: Kind, version: str, *, labels: str = "") -> Iterator[tuple[str, Object]]:
        """What happens from a resource version on, as (ADDED, MODIFIED, DELETED or BOOKMARK, object).

        Yields ("OPEN", {}) when the server has taken the watch, and returns when the server ends it in good order.
        """
        params = {
            "resourceVersion": version,
            "labelSelector": labels or None,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }
        with _told(self.server):
            driver = WatchDriver(
                self.prepare_request("list", kind, watch=True, params=params), self._client.build_request
            )
            response = self.send(driver.get_request(timeout=self._quiet), stream=True)
            try:
                if response.is_error:
                    response.read()
                self.raise_for_status(response)
                yield "OPEN", {}
                for line in response.iter_lines():
                    yield driver.process_one_line(line)
            finally:
                response.close()

    def _call(self, method: str, kind: Kind, **options: Any) -> Object | None:
        with _told(self.server):
            answer: Object | None = self.request(method, kind, **options)
            return answer


@contextmanager
def _told(server: str) -> Iterator[None]:
    """Turn whatever a call may raise into a KubeError that says what was asked of whom."""
    try:
        yield
    except ApiError as error:
        status = error.status
        code = int(status.code or (error.response.status_code if error.response is not None else 0))
        text = status.message or status.reason or "no reason given"
        raise KubeError(
            f"Kubernetes at {server} answered {code}: {text}", code, _retry_after(error.response)
        ) from error
    except httpx2.HTTPStatusError as error:
        # Not in Kubernetes' own form: a proxy's 404, or one for an API that is not installed, proves nothing.
        code = error.response.status_code
        text = error.response.text[:200].strip()
        detail = f"Kubernetes at {server} answered {code}: {text}"
        raise KubeError(detail, 0 if code == 404 else code, _retry_after(error.response)) from error
    except (httpx2.HTTPError, ConfigError) as error:
        raise KubeError(f"Kubernetes at {server} does not answer: {error or type(error).__name__}") from error
    except (msgspec.MsgspecError, KeyError, ValueError, TypeError) as error:
        raise KubeError(f"what answers at {server} is no Kubernetes API: {error}") from error


def _retry_after(response: httpx2.Response | None) -> float:
    header = "" if response is None else response.headers.get("Retry-After", "")
    return float(header) if header.isdigit() else 0.0
