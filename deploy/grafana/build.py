"""All dashboards as the documents that Grafana is provisioned with."""

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana import fleet, job, service

FOLDER = Path(__file__).parents[2] / "helm" / "resforge" / "dashboards"


def documents() -> dict[str, str]:
    """Each dashboard's JSON by the name of its file."""
    documents = {}
    for module in (fleet, job, service):
        dashboard = module.build().build()
        for number, panel in enumerate(dashboard.panels or (), start=1):
            panel.id_val = number  # a link to a panel names it
        documents[f"{dashboard.uid}.json"] = json.dumps(dashboard, cls=JSONEncoder, indent=1, sort_keys=True) + "\n"
    return documents
