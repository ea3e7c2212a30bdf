"""Load every bundle that ships as the server will; keep what that converts: convert_bundles.py CACHE_DIR cpu|cuda."""

import sys
from pathlib import Path

from model_store.bundle import load_bundle
from model_store.runtime_names import RuntimeChoice
from model_store.store import SHIPPED, Store

RUNTIMES: dict[str, RuntimeChoice] = {"cpu": "openvino", "cuda": "torch-eager"}
"""By variant; there is no GPU where an image is built."""


def main(cache_dir: Path, variant: str) -> None:
    """Replay each bundle's golden images; where one differs, or the runtime is not there, no image is made."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    store = Store(SHIPPED)
    for ref in store.refs():
        bundle = load_bundle(store.resolve(ref), runtime=RUNTIMES[variant], cache_dir=cache_dir)
        print(f"{ref} on {bundle.predictor.scorer.runtime.name}")  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
