"""What servers are asked: whole HTTP requests, made before a load begins."""

import base64
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.bundles import IMAGES, RECIPE
from training import encode
from training.config import read_recipe
from training.datasets import load_set

JPEG_QUALITY = 90
ARRAYS = 10
"""How many different arrays are sent in turn."""


def sample_images() -> NDArray[np.uint8]:
    """Return the tests' in-distribution test images, uint8 (100, 32, 32, 3)."""
    recipe = read_recipe(Path(RECIPE))
    return load_set(recipe.data.test, IMAGES, recipe.preprocess, None).images


def jpegs(pixels: NDArray[np.uint8]) -> list[bytes]:
    """Return images uint8 (N, H, W, 3) as JPEG files."""
    return [encode.jpeg(image, JPEG_QUALITY) for image in pixels]


def http_post(path: str, content_type: str, body: bytes) -> bytes:
    """Return a whole POST request."""
    head = f"POST {path} HTTP/1.1\r\nHost: benchmark\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def as_body(files: Sequence[bytes]) -> list[bytes]:
    """Return a request for each image file, the body as it is."""
    return [http_post("/predict", "image/jpeg", file) for file in files]


def as_json(files: Sequence[bytes]) -> list[bytes]:
    """Return a request for each image file, in base64 in JSON."""
    bodies = [json.dumps({"image": base64.b64encode(file).decode()}).encode() for file in files]
    return [http_post("/predict", "application/json", body) for body in bodies]


def as_arrays(pixels: NDArray[np.uint8], images_per_request: int) -> list[bytes]:
    """Return requests of so many images each, uint8 (N, H, W, 3) in turn, as .npy files."""
    rows = itertools.cycle(range(len(pixels)))
    chosen = [[next(rows) for _ in range(images_per_request)] for _ in range(ARRAYS)]
    return [http_post("/predict", "application/x-npy", _npy(pixels[indices])) for indices in chosen]


def _npy(array: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
