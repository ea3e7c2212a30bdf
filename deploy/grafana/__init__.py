"""Dashboards as code: `python -m deploy.grafana.generate` writes them into dashboards/."""
