"""How a network is executed: pixels in, float32 logits and features out."""

from model_store.runtime_names import RuntimeChoice
from model_store.runtimes.choice import RunnableNetwork, RuntimeOptions, run_accepted
from model_store.runtimes.openvino_ir import OpenVinoIr
from model_store.runtimes.openvino_runtime import LowPrecisionOpenVinoRuntime, OpenVinoRuntime
from model_store.runtimes.runtime import Runtime
from model_store.runtimes.torch_graphs import TorchGraphsRuntime
from model_store.runtimes.torch_runtime import TorchRuntime

__all__ = [
    "LowPrecisionOpenVinoRuntime",
    "OpenVinoIr",
    "OpenVinoRuntime",
    "RunnableNetwork",
    "Runtime",
    "RuntimeChoice",
    "RuntimeOptions",
    "TorchGraphsRuntime",
    "TorchRuntime",
    "run_accepted",
]
