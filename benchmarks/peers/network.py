"""What every peer runs: the bundle of ours, by our decoder, network and scores. Only the serving is the peer's own."""

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_store import images
from model_store.bundle import Bundle, load_bundle
from model_store.store import BundleRef, Store

Answer = dict[str, str | float | bool]


def options() -> argparse.Namespace:
    """Read the peer's command line, which the processes that it spawns have too; what is not ours is left alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--store", type=Path, required=True, help="the store of bundles")
    parser.add_argument("--model", required=True, help="the bundle, `name` or `name@version`")
    parser.add_argument("--runtime", choices=("torch-eager", "openvino"), required=True)
    parser.add_argument("--cache-dir", type=Path, required=True, help="where OpenVINO's conversion is kept")
    parser.add_argument("--batch-size", type=int, default=1, help="images in one forward pass, at most")
    parser.add_argument("--wait-ms", type=int, default=0, help="how long a batch is waited for, at most")
    parser.add_argument("--workers", type=int, default=1, help="processes that run the network")
    parser.add_argument("--threads", type=int, help="CPU threads of one forward pass; the runtime's own number if not")
    return parser.parse_known_args()[0]


class Network:
    """A loaded bundle."""

    def __init__(self, bundle: Bundle, turn: AbstractContextManager[Any]) -> None:
        """Keep a bundle; `turn` is held for each forward pass."""
        self._bundle = bundle
        self._turn = turn

    @classmethod
    def load(cls, chosen: argparse.Namespace) -> "Network":
        """Load the bundle that the command line names. An inference request of OpenVINO serves one thread at a time."""
        bundle = load_bundle(
            Store(chosen.store).resolve(BundleRef.parse(chosen.model)),
            runtime=chosen.runtime,
            device=torch.device("cpu"),
            cache_dir=chosen.cache_dir,
            threads=chosen.threads,
        )
        return cls(bundle, Lock() if chosen.runtime == "openvino" else nullcontext())

    def decode(self, jpeg: bytes) -> NDArray[np.uint8]:
        """Return an encoded image as uint8 (H, W, 3) of the network's size."""
        return images.load(jpeg, self._bundle.manifest.preprocess)

    def answer(self, pixels: Sequence[NDArray[np.uint8]]) -> list[Answer]:
        """Judge images uint8 (H, W, 3) in one batch, and return what a peer replies to each."""
        with self._turn:
            found = self._bundle.predictor.predict(np.stack(pixels))
        classes = self._bundle.manifest.classes
        return [
            {"class_name": classes[class_id], "negative_energy": energy, "is_ood": is_ood}
            for class_id, energy, is_ood in zip(
                found.class_id.tolist(), found.negative_energy.tolist(), found.is_ood.tolist(), strict=True
            )
        ]
