"""How a network is executed: pixels in, float32 logits and features out."""

from model_store.runtimes.runtime import Runtime
from model_store.runtimes.torch_runtime import TorchRuntime

__all__ = ["Runtime", "TorchRuntime"]
