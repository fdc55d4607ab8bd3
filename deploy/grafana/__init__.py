"""The Grafana dashboards as code: what is measured comes from resforge/metrics.py, what is seen is built here.

`python -m deploy.grafana` writes them to helm/resforge/dashboards, from where the chart and compose take them.
"""
