"""What most people would write to serve the same network: FastAPI, one image a request, eager PyTorch.

The endpoint is `def`, so Starlette runs it on its pool of 40 threads; PyTorch has its default threads. It decodes,
scores and judges by the same code as our server, reads the raw body, which is cheaper than a form, and has neither
queue nor metrics nor log of its own.
"""

import argparse
from typing import Annotated

import torch
import uvicorn
from fastapi import Body, FastAPI, Response

from model_store import images
from model_store.bundle import Bundle, load_bundle
from model_store.store import SHIPPED, BundleRef, Store


def create_app(bundle: Bundle) -> FastAPI:
    """Return the application."""
    app, manifest = FastAPI(), bundle.manifest

    @app.get("/readyz")
    def readyz() -> Response:
        return Response()

    @app.post("/predict")
    def predict(image: Annotated[bytes, Body(media_type="image/jpeg")]) -> dict[str, str | float | bool]:
        pixels = images.load(image, manifest.preprocess)
        predictions = bundle.predictor.predict(pixels[None])
        return {
            "class_name": manifest.classes[predictions.class_id[0]],
            "negative_energy": float(predictions.negative_energy[0]),
            "is_ood": bool(predictions.is_ood[0]),
        }

    return app


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(prog="plain_fastapi", description=__doc__)
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--model", default="cifar10", help="the bundle, of those that ship")
    arguments = parser.parse_args()
    folder = Store(SHIPPED).resolve(BundleRef.parse(arguments.model))
    bundle = load_bundle(folder, runtime="torch-eager", device=torch.device("cpu"))
    uvicorn.run(create_app(bundle), port=arguments.port)


if __name__ == "__main__":
    main()
