"""mosec with dynamic batching, after its documentation: one stage that decodes and runs the network.

It takes `--port` and the like from the command line itself.
"""

from mosec import Server, ValidationError, Worker

from benchmarks.peers.network import Answer, Network, options
from model_store.errors import ImageError


class Classifier(Worker):
    """One image a request, `max_batch_size` of them a forward pass."""

    def __init__(self) -> None:
        """Load the network, in the process that runs it."""
        super().__init__()
        self.network = Network.load(options())
        self.batched = options().batch_size > 1

    def deserialize(self, data: bytes) -> bytes:
        """Take the body as it is: an image file."""
        return data

    def forward(self, data: list[bytes] | bytes) -> list[Answer] | Answer:
        """Judge a batch; without batching, one image."""
        try:
            pixels = [self.network.decode(jpeg) for jpeg in (data if isinstance(data, list) else [data])]
        except ImageError as err:
            raise ValidationError(str(err)) from err
        answers = self.network.answer(pixels)
        return answers if self.batched else answers[0]


if __name__ == "__main__":
    chosen = options()
    server = Server()
    server.append_worker(
        Classifier, num=chosen.workers, max_batch_size=chosen.batch_size, max_wait_time=chosen.wait_ms, route="/predict"
    )
    server.run()
