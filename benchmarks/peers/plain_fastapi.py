"""What most people would write first: FastAPI, one image a request and a forward pass.

The endpoint is `def`, so Starlette runs it on its pool of 40 threads. It reads the raw body, which is cheaper than a
form, and has neither queue nor metrics nor log of its own.
"""

from typing import Annotated

import uvicorn
from fastapi import Body, FastAPI

from benchmarks.peers.network import Answer, Network, options


def create_app(network: Network) -> FastAPI:
    """Return the application."""
    app = FastAPI()

    @app.post("/predict")
    def predict(image: Annotated[bytes, Body(media_type="image/jpeg")]) -> Answer:
        return network.answer([network.decode(image)])[0]

    return app


if __name__ == "__main__":
    chosen = options()
    uvicorn.run(create_app(Network.load(chosen)), port=chosen.port, access_log=False)
