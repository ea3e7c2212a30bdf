"""What runs beside the server: Prometheus, Alertmanager and Grafana, and a trial of it all on one machine."""
