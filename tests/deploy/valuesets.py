"""Values that tests render the chart with: those that ship, and two that between them turn everything on."""

from typing import Any

POOL: dict[str, Any] = {
    "name": "gpu",
    "gpus_per_node": 8,
    "cpus_per_node": 95.5,
    "memory_gib_per_node": 1000,
    "max_nodes": 4,
    "node_selector": {"example.com/pool": "gpu"},
    "tolerations": [{"key": "example.com/dedicated", "operator": "Equal", "value": "yes", "effect": "NoExecute"}],
    "topology_key": "topology.kubernetes.io/rack",
    "priority_class": "high",
    "queue": "gpu",
    "shared_memory_gib": 16,
    "cache": {"size_gib": 500},
    "extra_resources": {"rdma/hca": 8},
    "ipc_lock": False,
    "image": "registry.example.com/trainer:1.0",
    "start_deadline_s": 3600,
    "deadline_s": 86400,
}

HEADS: dict[str, Any] = {
    "node_selector": {"example.com/pool": "heads"},
    "tolerations": [
        {"key": "example.com/heads", "operator": "Exists", "effect": "NoExecute", "toleration_seconds": 60}
    ],
}

PEERS: list[dict[str, Any]] = [
    {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
    {"namespaceSelector": {"matchLabels": {"team": "data"}}, "podSelector": {"matchLabels": {"app": "db"}}},
]

# A database and S3 beside the cluster, and all that is optional.
OUTSIDE: dict[str, Any] = {
    "database": {"existingSecret": "database"},
    "objectStorage": {
        "bucket": "training",
        "endpoint": "https://s3.internal",
        "publicEndpoint": "https://s3.public",
        "region": "eu-north-1",
        "existingSecret": "s3-keys",
        "trainerExistingSecret": "trainer-s3-keys",
    },
    "images": {"pullSecrets": ["registry"]},
    "commonLabels": {"team": "vision"},
    "pods": {
        "annotations": {"a.example/b": "c"},
        "labels": {"cost-centre": "42"},
        "nodeSelector": {"role": "services"},
        "tolerations": [{"key": "role", "operator": "Equal", "value": "services", "effect": "NoSchedule"}],
        "priorityClassName": "services",
        "extraEnv": [{"name": "NO_PROXY", "value": "10.0.0.0/8"}],
    },
    "jobs": {"namespace": "training", "createNamespace": True},
    "pools": [POOL],
    "heads": HEADS,
    "kueue": {"enabled": True},
    "ingress": {"enabled": True, "className": "traefik", "host": "api.example.com", "tlsSecret": "api-tls"},
    "gateway": {
        "enabled": True,
        "hostnames": ["api.example.com"],
        "parentRefs": [{"name": "gateway", "namespace": "infra", "sectionName": "web"}],
    },
    "networkPolicy": {
        "clients": PEERS,
        "database": {"to": PEERS},
        "objectStorage": {"to": PEERS},
        "kubernetesApi": {"to": PEERS},
    },
    "monitoring": {"enabled": True},
}

# A database and S3 inside, in one namespace with the jobs, and what OUTSIDE leaves out.
INSIDE: dict[str, Any] = {
    "objectStorage": {"bucket": "training"},
    "api": {"autoscaling": {"enabled": False}},
    "migrations": {"hook": False},
    "pods": {"runAsUser": None},
    "postgresql": {"enabled": True},
    "s3": {"enabled": True},
    "networkPolicy": {"dns": {"cidrs": ["169.254.20.10/32"]}},
}

# The least that must be given.
LEAST: dict[str, Any] = {"database": {"existingSecret": "database"}, "objectStorage": {"bucket": "training"}}

# By name: the files of values that ship, and what is laid over them.
SETS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "least": ((), LEAST),
    "dev": (("values-dev.yaml",), {}),
    "gpu": (("values-gpu.yaml",), {}),
    "outside": ((), OUTSIDE),
    "inside": ((), INSIDE),
    "accounts of one's own": (
        (),
        LEAST
        | {
            name: {"serviceAccount": {"create": False, "name": f"own-{name}"}}
            for name in ("api", "controller", "migrations", "jobs")
        },
    ),
    "bare": (
        (),
        LEAST
        | {
            "networkPolicy": {"enabled": False},
            "api": {"autoscaling": {"enabled": False}, "podDisruptionBudget": {"enabled": False}, "topologySpread": []},
            "controller": {"podDisruptionBudget": {"enabled": False}, "topologySpread": []},
        },
    ),
}
