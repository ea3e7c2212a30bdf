"""What runs the network, without a server: pixels to verdicts in batches. Serving can at most reach that.

Nothing is decoded. A process of its own, so that it has the machine as a server has it; it writes one line of JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.http_requests import sample_images
from benchmarks.servers import environment
from model_store.bundle import load_bundle
from model_store.predictor import Predictor
from model_store.store import BundleRef, Store

WARM_UP = 3
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Speed:
    """The runtime's name, images/s by batch size, and the median milliseconds of a batch of one."""

    runtime: str
    images_per_s: dict[int, float]
    one_image_ms: float


class EngineError(Exception):
    """The process ended without figures."""


def measure_apart(
    store: Path, model: str, runtime: str, cache: Path, *, batch_sizes: Sequence[int], seconds: float
) -> Speed:
    """Measure in a process of its own; `seconds` are for each batch size.

    Raises:
        EngineError: the bundle cannot be run so; with what was said at the end.
    """
    command = [sys.executable, "-m", "benchmarks.engine", "--store", str(store), "--model", model, "--runtime", runtime]
    command += ["--cache-dir", str(cache), "--seconds", str(seconds), "--batch-sizes", *map(str, batch_sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), timeout=TIMEOUT_S)
    if done.returncode:
        raise EngineError(f"benchmarks.engine ended with status {done.returncode}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    by_size = {int(size): speed for size, speed in found["images_per_s"].items()}
    return Speed(found["runtime"], by_size, found["one_image_ms"])


def measure(predictor: Predictor, batch_sizes: Sequence[int], seconds: float) -> Speed:
    """Predict batches of each size for so long; a batch of one image is always among them."""
    images = sample_images()
    took: dict[int, list[float]] = {}
    for size in sorted({1, *batch_sizes}):
        batch = np.resize(images, (size, *images.shape[1:]))
        for _ in range(WARM_UP):
            predictor.predict(batch)
        took[size] = _durations(predictor, batch, seconds)
    speeds = {size: round(size * len(each) / sum(each), 1) for size, each in took.items()}
    return Speed(predictor.scorer.runtime.name, speeds, round(1000 * statistics.median(took[1]), 3))


def _durations(predictor: Predictor, batch: Any, seconds: float) -> list[float]:
    """Return the seconds of each forward pass with its verdicts; at least one."""
    found: list[float] = []
    until = time.perf_counter() + seconds
    while not found or time.perf_counter() < until:
        begun = time.perf_counter()
        predictor.predict(batch)
        found.append(time.perf_counter() - begun)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the figures; return the exit status."""
    parser = argparse.ArgumentParser(prog="engine", description=__doc__)
    parser.add_argument("--store", type=Path, required=True, help="the store of bundles")
    parser.add_argument("--model", required=True, help="the bundle, `name` or `name@version`")
    parser.add_argument("--runtime", required=True, help="as of ood-serve")
    parser.add_argument("--cache-dir", type=Path, required=True, help="where OpenVINO's conversion is kept")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 16, 32, 64], help="images a forward pass")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each batch size is run")
    options = parser.parse_args(arguments)
    folder = Store(options.store).resolve(BundleRef.parse(options.model))
    device = torch.device("cpu") if options.runtime == "openvino" else None
    bundle = load_bundle(folder, runtime=options.runtime, device=device, cache_dir=options.cache_dir)
    found = measure(bundle.predictor, options.batch_sizes, options.seconds)
    figures = {"runtime": found.runtime, "images_per_s": found.images_per_s, "one_image_ms": found.one_image_ms}
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
