"""What a JPEG of a small network's size costs to load, beside bare Pillow: `Image.open`, conversion, array.

CPU time. The two take turns, and what a repeat takes is divided by its images; the least of the repeats is the cost as
far as other work on the machine, which shares caches and clock, can be kept out of it.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.bundles import RECIPE
from benchmarks.conditions import conditions
from benchmarks.http_requests import sample_images
from model_store import images
from training.config import read_recipe

QUALITIES = (75, 90, 95)
CHROMA = ("4:2:0", "4:4:4")
ROUNDS = 2
"""Passes over the images in a repeat, which lasts about ten milliseconds."""

Load = Callable[[bytes], NDArray[np.uint8]]


def bare_pillow(encoded: bytes) -> NDArray[np.uint8]:
    """Load as its documentation shows."""
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def jpegs(pixels: NDArray[np.uint8], quality: int, chroma: str) -> list[bytes]:
    """Return images uint8 (N, H, W, 3) as JPEG files."""
    files = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=chroma)
        files.append(file.getvalue())
    return files


def measure(files: Sequence[bytes], loads: Sequence[Load], repeats: int) -> list[list[float]]:
    """Return CPU microseconds an image, by load and repeat."""
    taken: list[list[float]] = [[] for _ in loads]
    for _ in range(repeats):
        for load, found in zip(loads, taken, strict=True):
            begun = time.thread_time()
            for file in ROUNDS * list(files):
                load(file)
            found.append(1e6 * (time.thread_time() - begun) / (ROUNDS * len(files)))
    return taken


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    parser.add_argument("--repeats", type=int, default=25)
    repeats = parser.parse_args(arguments).repeats
    spec, pixels, where = read_recipe(Path(RECIPE)).preprocess, sample_images(), conditions("benchmarks.decoding")
    print(
        f"{where['command']}: {len(pixels)} images of {spec.width}x{spec.height}, least (median) of {repeats}; "
        f"{where['cpu']}, {where['cores']} cores, load {where['load_average_before']} before, {images.DECODER}, "
        f"{where['date']}\n"
    )
    print("| quality | chroma | bytes | bare Pillow, us | `images.load`, us |\n| --- | --- | --- | --- | --- |")
    for quality in QUALITIES:
        for chroma in CHROMA:
            files = jpegs(pixels, quality, chroma)
            taken = measure(files, [bare_pillow, lambda encoded: images.load(encoded, spec)], repeats)
            cells = " | ".join(f"{min(values):.1f} ({statistics.median(values):.1f})" for values in taken)
            print(f"| {quality} | {chroma} | {round(statistics.mean(map(len, files)))} | {cells} |")


if __name__ == "__main__":
    main()
