"""Which runtime runs a bundle: the one that was asked for, or the fastest that agrees with the golden images."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from model_store.errors import BundleError, RuntimeUnavailableError
from model_store.manifest import PreprocessSpec
from model_store.runtime_names import RuntimeChoice
from model_store.runtimes.openvino_cache import OpenVinoCache
from model_store.runtimes.openvino_ir import OpenVinoIr, convert, openvino_is_installed
from model_store.runtimes.openvino_runtime import OpenVinoRuntime
from model_store.runtimes.runtime import Runtime
from model_store.runtimes.torch_runtime import Mode, Precision, TorchRuntime

logger = logging.getLogger(__name__)

Accepted = TypeVar("Accepted")


@dataclass(frozen=True)
class RuntimeOptions:
    """What a caller wants: `device` None is CUDA where there is one, `threads` None the runtime's own number."""

    choice: RuntimeChoice
    device: torch.device | None = None
    cache_dir: Path | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads}; expected 1 or more, or None")


@dataclass(frozen=True)
class RunnableNetwork:
    """What there is to run: a network with its weights, and the bundle that it is of."""

    network: nn.Module
    preprocess: PreprocessSpec
    precision: Precision
    bundle_sha256: str


def run_accepted(source: RunnableNetwork, options: RuntimeOptions, accept: Callable[[Runtime], Accepted]) -> Accepted:
    """Start the chosen runtime and return what `accept` makes of it.

    `auto` is eager PyTorch on a GPU; on the CPU it is OpenVINO where that is installed and accepted, else eager
    PyTorch; that OpenVINO is passed over is logged as a warning.

    Args:
        source: what to run.
        options: the choice, and where and how to run it.
        accept: replays the golden images; raises `BundleError` where they disagree.

    Raises:
        RuntimeUnavailableError: the chosen runtime cannot be had here.
        BundleError: what `accept` raised for the last runtime that was tried.
    """
    if options.choice != "auto":
        return _explicit(source, options, accept)
    if _device(options).type == "cpu" and openvino_is_installed():
        try:
            return _openvino(source, options, accept)
        except BundleError as err:
            logger.warning("openvino is installed but passed over for torch-eager: %s", err)
    return _torch(source, options, accept, "eager")


def _explicit(source: RunnableNetwork, options: RuntimeOptions, accept: Callable[[Runtime], Accepted]) -> Accepted:
    match options.choice:
        case "torch-eager":
            return _torch(source, options, accept, "eager")
        case "torch-compiled":
            return _torch(source, options, accept, "compiled")
        case "openvino":
            return _openvino(source, options, accept)
        case _:
            raise ValueError(f"runtime is {options.choice!r}; expected auto, torch-eager, torch-compiled or openvino")


def _device(options: RuntimeOptions) -> torch.device:
    return options.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _torch(
    source: RunnableNetwork, options: RuntimeOptions, accept: Callable[[Runtime], Accepted], mode: Mode
) -> Accepted:
    device = _device(options)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeUnavailableError(f"device is {device}; there is no CUDA device here")
    runtime = TorchRuntime(
        source.network,
        source.preprocess,
        device=device,
        mode=mode,
        precision=source.precision,
        threads=options.threads,
    )
    return _accepted(runtime, accept)


def _openvino(source: RunnableNetwork, options: RuntimeOptions, accept: Callable[[Runtime], Accepted]) -> Accepted:
    """Run the cached conversion where it is accepted; else convert, and cache what is accepted."""
    if options.device is not None and options.device.type != "cpu":
        raise RuntimeUnavailableError(f"device is {options.device}; the openvino runtime runs on the cpu")
    if source.precision != "float32":
        raise RuntimeUnavailableError(f"precision is {source.precision}; the openvino runtime computes in float32")

    def started(ir: OpenVinoIr) -> Accepted:
        return _accepted(OpenVinoRuntime(ir, threads=options.threads), accept)

    cache = None if options.cache_dir is None else OpenVinoCache(options.cache_dir, source.bundle_sha256)
    if cache is not None and (cached := cache.read()) is not None:
        try:
            return started(cached)
        except BundleError as err:
            logger.warning("%s is not the bundle's network and is made again: %s", cache.path, err)
            cache.drop()
    converted = convert(source.network, source.preprocess)
    result = started(converted)
    if cache is not None:
        cache.write(converted)
    return result


def _accepted(runtime: Runtime, accept: Callable[[Runtime], Accepted]) -> Accepted:
    try:
        return accept(runtime)
    except (RuntimeError, ValueError) as err:  # no compiler, a graph of other inputs or outputs, no memory
        raise RuntimeUnavailableError(f"{runtime.name} cannot run the golden images: {err}") from err
