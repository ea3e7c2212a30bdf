"""Write the dashboards as JSON, as Grafana reads them."""

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.model import model
from deploy.grafana.overview import overview
from deploy.grafana.serving import serving

DASHBOARDS = Path(__file__).parent / "dashboards"
MAKERS = {"overview": overview, "model": model, "serving": serving}
"""By the names of their files."""


def generate() -> dict[str, str]:
    """Return the JSON of each dashboard by the name of its file, without the ending."""
    encoder = JSONEncoder(indent=2, sort_keys=True, ensure_ascii=False)
    return {name: encoder.encode(make()) + "\n" for name, make in MAKERS.items()}


def main() -> None:
    """Write them."""
    for name, text in generate().items():
        (DASHBOARDS / f"{name}.json").write_text(text)


if __name__ == "__main__":
    main()
