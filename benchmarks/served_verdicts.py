"""The served verdict is the offline verdict: every image of the test sets, through a running server and offline.

Offline is what wrote the bundle's figures: the same pixels through eager PyTorch, as `training.evaluate` does. The
server gets them as PNG, which is lossless, and runs on whatever runtime it chose. Exit status 1 if one verdict differs.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.servers import ServerEndedError, free_port, ood_serve, running
from model_store.bundle import Bundle, load_bundle
from model_store.errors import BundleError
from model_store.predictor import Predictions
from model_store.store import SHIPPED, BundleRef, Store
from training import encode
from training.config import Recipe
from training.datasets import ImageSet, load_set
from training.errors import DataError

IMAGES_PER_REQUEST = 64
CONNECTIONS = 4
REQUEST_TIMEOUT_S = 60.0
HEADER = (
    "| set | images | flagged offline | flagged served | offline | served | verdicts that differ "
    "| classes that differ | greatest difference of negative energy | of p-value |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


class RefusedError(Exception):
    """The server gave no verdicts, or those of another bundle."""


@dataclass(frozen=True)
class Comparison:
    """The two predictions of one set, image by image; a flag is wrong on a set that is in-distribution."""

    name: str
    in_distribution: bool
    offline: Predictions
    served: Predictions

    @property
    def images(self) -> int:
        """How many were judged twice."""
        return len(self.offline.is_ood)

    @property
    def differing_verdicts(self) -> int:
        """Images flagged by only one of the two."""
        return int((self.offline.is_ood != self.served.is_ood).sum())

    @property
    def differing_classes(self) -> int:
        """Images that the two put into different classes."""
        return int((self.offline.class_id != self.served.class_id).sum())

    def row(self) -> str:
        """Return the set's row of the table."""
        cells = (
            self.name,
            f"{self.images:,}",
            f"{self.offline.is_ood.sum():,}",
            f"{self.served.is_ood.sum():,}",
            self._rate(self.offline),
            self._rate(self.served),
            self.differing_verdicts,
            self.differing_classes,
            f"{_greatest_difference(self.offline.negative_energy, self.served.negative_energy):.1e}",
            f"{_greatest_difference(self.offline.p_value, self.served.p_value):.1e}",
        )
        return f"| {' | '.join(map(str, cells))} |"

    def _rate(self, predictions: Predictions) -> str:
        flagged = 100 * float(predictions.is_ood.mean())
        return f"{flagged:.2f} % false flags" if self.in_distribution else f"{100 - flagged:.2f} % missed"


async def ask(url: str, bundle: Bundle, pixels: NDArray[np.uint8]) -> Predictions:
    """Return what a server says of images uint8 (N, H, W, 3), sent as PNG, several requests at once.

    Raises:
        RefusedError: an answer other than 200 and 429, or from another bundle than `bundle`.
    """
    parts = [pixels[at : at + IMAGES_PER_REQUEST] for at in range(0, len(pixels), IMAGES_PER_REQUEST)]
    turns = asyncio.Semaphore(CONNECTIONS)
    async with httpx.AsyncClient(base_url=url, timeout=REQUEST_TIMEOUT_S) as client:
        answers = await asyncio.gather(*(_ask_once(client, turns, bundle, part) for part in parts))
    return _predictions([prediction for answer in answers for prediction in answer])


async def _ask_once(
    client: httpx.AsyncClient, turns: asyncio.Semaphore, bundle: Bundle, pixels: NDArray[np.uint8]
) -> list[dict[str, Any]]:
    path = f"/models/{bundle.manifest.name}@{bundle.manifest.version}/predict"
    async with turns:
        files = [("images", (f"{row}.png", encode.png(image), "image/png")) for row, image in enumerate(pixels)]
        while (response := await client.post(path, files=files)).status_code == 429:
            await asyncio.sleep(float(response.headers["Retry-After"]))
    if response.status_code != 200:
        raise RefusedError(f"{response.request.url} answered {response.status_code}: {response.text[:500]}")
    reply = response.json()
    if reply["model"]["sha256"] != bundle.sha256:
        raise RefusedError(f"the server's bundle is {reply['model']['sha256']}, the one compared with {bundle.sha256}")
    predictions: list[dict[str, Any]] = reply["predictions"]
    return predictions


def _predictions(found: Sequence[dict[str, Any]]) -> Predictions:
    def column(name: str, dtype: type) -> NDArray[Any]:
        return np.array([prediction[name] for prediction in found], dtype)

    return Predictions(
        class_id=column("class_id", np.int64),
        confidence=column("confidence", np.float32),
        negative_energy=column("negative_energy", np.float32),
        p_value=column("p_value", np.float64),
        is_ood=column("is_ood", np.bool_),
    )


def _greatest_difference(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    return float(np.abs(ours.astype(np.float64) - theirs).max())


def check(url: str, bundle: Bundle, sets: Sequence[ImageSet]) -> int:
    """Judge every image of every set twice, print a table; return the exit status, 1 if any verdict differs."""
    images = differing = 0
    print(HEADER)
    for image_set in sets:
        pixels, in_distribution = image_set.images, image_set.name == recipe_of(bundle).data.test
        offline, served = bundle.predictor.predict(pixels), asyncio.run(ask(url, bundle, pixels))
        comparison = Comparison(image_set.name, in_distribution, offline, served)
        print(comparison.row(), flush=True)
        images += comparison.images
        differing += comparison.differing_verdicts
    print(f"\n{differing} of {images:,} verdicts differ")
    return 1 if differing else 0


def recipe_of(bundle: Bundle) -> Recipe:
    """Return the recipe that a bundle was made by."""
    return Recipe.model_validate(bundle.manifest.provenance.recipe)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, with a server of our own if none is named; return the exit status, 2 if there is nothing to compare."""
    try:
        return _main(_parser().parse_args(arguments))
    except (BundleError, DataError, RefusedError, ServerEndedError, httpx.HTTPError) as err:
        print(f"served_verdicts: {err}", file=sys.stderr)
        return 2


def _main(options: argparse.Namespace) -> int:
    folder = Store(options.store).resolve(BundleRef.parse(options.model))
    bundle = load_bundle(folder, runtime="torch-eager", device=torch.device("cpu"))
    data = recipe_of(bundle).data
    sources = options.sets or [data.test, *data.far_ood.values(), *data.near_ood.values()]
    preprocess, quality = bundle.manifest.preprocess, data.reencode_jpeg_quality
    sets = [load_set(source, options.data, preprocess, quality) for source in sources]
    name = f"{bundle.manifest.name}@{bundle.manifest.version}"
    with nullcontext(options.url) if options.url else _own_server(options.store, name) as url:
        print(f"{name}: offline {bundle.predictor.scorer.runtime.name}, served {_runtime(url, name)}\n")
        return check(url, bundle, sets)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="served_verdicts", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds the image sets")
    parser.add_argument("--url", help="a server that runs; without it, one is started")
    parser.add_argument("--store", type=Path, default=SHIPPED, help="the store of bundles")
    parser.add_argument("--model", default="cifar10", help="the bundle, `name` or `name@version`")
    parser.add_argument("--sets", nargs="+", help="sets below the data folder; the test sets of its recipe by default")
    return parser


@contextmanager
def _own_server(store: Path, name: str) -> Iterator[str]:
    port = free_port()
    with running(ood_serve(port, "--store", str(store), "--models", name), port) as server:
        yield server.url


def _runtime(url: str, name: str) -> str:
    for model in httpx.get(f"{url}/models").raise_for_status().json()["models"]:
        if f"{model['name']}@{model['version']}" == name:
            return str(model["runtime"])
    raise RefusedError(f"{url} does not serve {name}")


if __name__ == "__main__":
    raise SystemExit(main())
