"""LitServe with its own batching, after its documentation: the image comes in base64 in JSON."""

import argparse
import base64
from typing import Any

import litserve
import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.network import Answer, Network, options


class Classifier(litserve.LitAPI):
    """One image a request, `max_batch_size` of them a forward pass."""

    def setup(self, _: str) -> None:
        """Load the network, in the process that runs it."""
        self.network = Network.load(options())

    def decode_request(self, request: dict[str, Any]) -> NDArray[np.uint8]:
        """Return a request's pixels."""
        return self.network.decode(base64.b64decode(request["image"]))

    def batch(self, inputs: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        """Leave it to the network to stack them."""
        return inputs

    def predict(self, x: Any) -> Any:
        """Judge a batch; without batching, one image."""
        return self.network.answer(x) if isinstance(x, list) else self.network.answer([x])[0]

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        """Return an answer a request."""
        return output

    def encode_response(self, output: Answer) -> Answer:
        """Reply with it as JSON."""
        return output


def serve(chosen: argparse.Namespace) -> None:
    """Serve until a signal."""
    api = Classifier(max_batch_size=chosen.batch_size, batch_timeout=chosen.wait_ms / 1000)
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=chosen.workers, timeout=60)
    server.run(host="127.0.0.1", port=chosen.port, num_api_servers=1, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    serve(options())
