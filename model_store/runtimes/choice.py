"""Which runtime runs a bundle: the one that was asked for, or the fastest that agrees with the golden images."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import nn

from model_store.errors import BundleError, RuntimeUnavailableError
from model_store.manifest import Precision, PreprocessSpec
from model_store.runtime_names import RuntimeChoice
from model_store.runtimes.openvino_cache import OpenVinoCache
from model_store.runtimes.openvino_ir import OpenVinoIr, convert, openvino_is_installed
from model_store.runtimes.openvino_runtime import LowPrecisionOpenVinoRuntime, OpenVinoRuntime
from model_store.runtimes.runtime import Runtime
from model_store.runtimes.torch_graphs import TorchGraphsRuntime
from model_store.runtimes.torch_runtime import TorchPrecision, TorchRuntime
from model_store.scores.score import Head

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
    """What there is to run: a network with its weights, in one precision, and the bundle that it is of.

    quantised: the graph that runs instead of all but the network's last layer; there if, and only if, it is int8.
    """

    network: nn.Module
    preprocess: PreprocessSpec
    precision: Precision
    bundle_sha256: str
    quantised: OpenVinoIr | None = None


def run_accepted(source: RunnableNetwork, options: RuntimeOptions, accept: Callable[[Runtime], Accepted]) -> Accepted:
    """Start the chosen runtime and return what `accept` makes of it.

    `auto` is the fastest that is there and accepted: on a GPU CUDA graphs, on the CPU OpenVINO, else eager PyTorch.
    What is there and passed over is logged as a warning. An int8 network runs on OpenVINO alone.

    Args:
        source: what to run.
        options: the choice, and where and how to run it.
        accept: replays the golden images; raises `BundleError` where they disagree.

    Raises:
        RuntimeUnavailableError: the chosen runtime cannot be had here, or not in the network's precision.
        BundleError: what `accept` raised for the last runtime that was tried.
    """
    if options.choice != "auto":
        return _explicit(source, options, options.choice, accept)
    first, *others = _by_speed(source, options)
    for choice in others:
        try:
            return _explicit(source, options, first, accept)
        except BundleError as err:
            logger.warning("%s is there but passed over for %s: %s", first, choice, err)
        first = choice
    return _explicit(source, options, first, accept)


def _by_speed(source: RunnableNetwork, options: RuntimeOptions) -> tuple[RuntimeChoice, ...]:
    """Return what may run a network here, the fastest first."""
    if source.precision == "int8":
        return ("openvino",)
    if _device(options).type == "cuda":
        return ("torch-graphs", "torch-eager")
    return ("openvino", "torch-eager") if openvino_is_installed() else ("torch-eager",)


def _explicit(
    source: RunnableNetwork, options: RuntimeOptions, choice: RuntimeChoice, accept: Callable[[Runtime], Accepted]
) -> Accepted:
    match choice:
        case "torch-eager" | "torch-compiled" | "torch-graphs":
            return _accepted(_torch(source, options, choice), accept)
        case "openvino":
            return _openvino(source, options, accept)
        case _:
            raise ValueError(
                f"runtime is {choice!r}; expected auto, torch-eager, torch-compiled, torch-graphs or openvino"
            )


def _device(options: RuntimeOptions) -> torch.device:
    return options.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _torch(
    source: RunnableNetwork,
    options: RuntimeOptions,
    choice: Literal["torch-eager", "torch-compiled", "torch-graphs"],
) -> Runtime:
    device = _device(options)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeUnavailableError(f"device is {device}; there is no CUDA device here")
    if source.precision == "int8":
        raise RuntimeUnavailableError(f"precision is int8, which openvino alone runs; {choice} cannot")
    precision: TorchPrecision = source.precision
    if choice == "torch-graphs":
        if device.type != "cuda":
            raise RuntimeUnavailableError(f"device is {device}; torch-graphs runs on CUDA alone")
        return TorchGraphsRuntime(source.network, source.preprocess, device=device, precision=precision)
    return TorchRuntime(
        source.network,
        source.preprocess,
        device=device,
        mode="compiled" if choice == "torch-compiled" else "eager",
        precision=precision,
        threads=options.threads,
    )


def _openvino(source: RunnableNetwork, options: RuntimeOptions, accept: Callable[[Runtime], Accepted]) -> Accepted:
    """Run the bundle's own graph, or the cached conversion where it is accepted; else convert, and cache."""
    if options.device is not None and options.device.type != "cpu":
        raise RuntimeUnavailableError(f"device is {options.device}; the openvino runtime runs on the cpu")

    def started(ir: OpenVinoIr) -> Accepted:
        return _accepted(_openvino_runtime(source, ir, options.threads), accept)

    if source.quantised is not None:
        return started(source.quantised)
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


def _openvino_runtime(source: RunnableNetwork, ir: OpenVinoIr, threads: int | None) -> Runtime:
    if source.precision == "float32":
        return OpenVinoRuntime(ir, threads=threads)
    return LowPrecisionOpenVinoRuntime(ir, Head.of(source.network), precision=source.precision, threads=threads)


def _accepted(runtime: Runtime, accept: Callable[[Runtime], Accepted]) -> Accepted:
    try:
        return accept(runtime)
    except (RuntimeError, ValueError) as err:  # no compiler, a graph of other inputs or outputs, no memory
        raise RuntimeUnavailableError(f"{runtime.name} cannot run the golden images: {err}") from err
