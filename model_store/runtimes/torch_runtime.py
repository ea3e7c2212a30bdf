"""PyTorch on CUDA or CPU, eager or compiled."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model_store.manifest import PreprocessSpec
from model_store.networks import NetworkOutput, NormalisedNetwork
from model_store.threads import torch_threads

Mode = Literal["eager", "compiled"]
TorchPrecision = Literal["float32", "bfloat16"]


class TorchRuntime:
    """Runs a network of ours; eager float32 is the reference that every other runtime is held to."""

    def __init__(
        self,
        network: nn.Module,
        preprocess: PreprocessSpec,
        *,
        device: torch.device,
        mode: Mode = "eager",
        precision: TorchPrecision = "float32",
        threads: int | None = None,
    ) -> None:
        """Move `network` to `device`, in evaluation mode.

        `threads` is how many CPU threads compute; None is PyTorch's number now.
        """
        forbid_tf32()
        self.threads = threads or torch.get_num_threads()
        self.name = f"torch-{mode}-{precision}-{device.type}"
        self.in_flight = 2 if device.type == "cuda" else 0
        self.device = device
        self.precision = precision
        pixels_to_logits = NormalisedNetwork(network, preprocess)
        pixels_to_logits.to(device).to(memory_format=torch.channels_last).eval()
        self.forward = torch.compile(pixels_to_logits, dynamic=True) if mode == "compiled" else pixels_to_logits

    def start(self, images: NDArray[np.uint8]) -> NetworkOutput:
        """Launch the forward pass over uint8 (N, H, W, 3); on CUDA without waiting for it."""
        batch = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
        with torch.inference_mode(), autocast, torch_threads(self.threads):
            output: NetworkOutput = self.forward(batch.to(self.device, non_blocking=True))
        return output

    def finish(self, ticket: NetworkOutput) -> NetworkOutput:
        """Copy logits and features to the host, which waits for them."""
        return NetworkOutput(logits=ticket.logits.cpu(), features=ticket.features.cpu())


def forbid_tf32() -> None:
    """Keep float32 convolutions and products from running in TF32, which moves energies by whole tenths.

    PyTorch has one such switch a process; it is set and never set back, since another runtime may be running. The
    older switch of cuDNN's is set with it: `torch.export` raises where the two differ.
    """
    torch.backends.cudnn.allow_tf32 = False
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn.conv):  # type: ignore[attr-defined]
        backend.fp32_precision = "ieee"
