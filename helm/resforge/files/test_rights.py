"""Run by `helm test` as the controller's account: ask the API server what it may do in the jobs' namespace, argv[1].

With argv[2], `kueue`, it must be able to read Kueue's workloads too.
"""

import json
import os
import ssl
import sys
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
NEEDED = (
    *(("ray.io", "rayjobs", verb) for verb in ("get", "list", "watch", "create", "delete")),
    *(("", resource, verb) for resource in ("pods", "events") for verb in ("get", "list", "watch")),
    *(("kueue.x-k8s.io", "workloads", verb) for verb in ("get", "list", "watch") if "kueue" in sys.argv[2:]),
)
WRITES = ("create", "update", "patch", "delete", "deletecollection")
FORBIDDEN = (
    *(("ray.io", "rayjobs", verb) for verb in ("update", "patch", "deletecollection")),
    *(("ray.io", "rayclusters", verb) for verb in WRITES),
    *(("kueue.x-k8s.io", "workloads", verb) for verb in WRITES),
    *(("", "pods", verb) for verb in WRITES),
    *(("", "secrets", verb) for verb in ("get", "list", "watch", *WRITES)),
    ("", "pods/exec", "create"),
    ("", "serviceaccounts/token", "create"),
)


def allowed(group: str, resource: str, verb: str) -> bool:
    name, _, part = resource.partition("/")
    asked = {"namespace": sys.argv[1], "group": group, "resource": name, "subresource": part, "verb": verb}
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    request = urllib.request.Request(
        f"https://{f'[{host}]' if ':' in host else host}:{port}/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        data=json.dumps(
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": asked},
            }
        ).encode(),
        headers={
            "Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}",
            "Content-Type": "application/json",
        },
    )
    trust = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    with urllib.request.urlopen(request, timeout=10, context=trust) as answer:
        return bool(json.load(answer)["status"]["allowed"])


wrong = [f"may not {verb} {group}/{resource}" for group, resource, verb in NEEDED if not allowed(group, resource, verb)]
wrong += [f"may {verb} {group}/{resource}" for group, resource, verb in FORBIDDEN if allowed(group, resource, verb)]
if wrong:
    sys.exit(f"in {sys.argv[1]} the controller's account " + "; ".join(wrong))
print("the controller's account has the rights that it needs, and none of those that it must not have")
