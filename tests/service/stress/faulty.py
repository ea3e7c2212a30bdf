"""ood-serve, with a device that fails as FAULT says once it sees an image that is all white."""

import os
from threading import Event
from typing import Any

import torch

import service.models
from model_store.bundle import load_bundle
from service.cli import main


def install(runtime: Any) -> None:
    """Stand between an engine and its runtime."""
    start, finish = runtime.start, runtime.finish

    def start_or_fail(images: Any) -> Any:
        white = bool((images.reshape(len(images), -1).min(axis=1) == 255).any())
        if white and os.environ["FAULT"] == "raise":
            raise RuntimeError("the device is gone")
        if white and os.environ["FAULT"] == "hang":
            Event().wait()
        return white, start(images)

    def finish_or_fail(ticket: tuple[bool, Any]) -> Any:
        white, inner = ticket
        output = finish(inner)
        return output._replace(logits=torch.full_like(output.logits, torch.nan)) if white else output

    runtime.start, runtime.finish = start_or_fail, finish_or_fail


def load_faulty(*args: Any, **kwargs: Any) -> Any:
    """Load a bundle whose runtime can fail."""
    bundle = load_bundle(*args, **kwargs)
    install(bundle.predictor.scorer.runtime)
    return bundle


if __name__ == "__main__":
    service.models.load_bundle = load_faulty
    main()
