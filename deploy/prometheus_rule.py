"""Write the shipped rules as a PrometheusRule, as the Prometheus operator reads them: `make rules`."""

from pathlib import Path
from textwrap import indent

HERE = Path(__file__).parent
RULES = HERE / "prometheus" / "rules"
MANIFEST = HERE / "kubernetes" / "components" / "monitoring" / "prometheus-rule.yaml"
HEAD = """\
# Made of deploy/prometheus/rules/ by `make rules`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: energy-ood
  labels: {app.kubernetes.io/name: energy-ood}
spec:
  groups:
"""


def generate() -> str:
    """Return the manifest: the groups of all files, as they are written there."""
    texts = [path.read_text() for path in sorted(RULES.glob("*.yml"))]
    return HEAD + "\n".join(indent(text.partition("\ngroups:\n")[2], "  ") for text in texts)


def main() -> None:
    """Write it."""
    MANIFEST.write_text(generate())


if __name__ == "__main__":
    main()
