"""What computes."""

import os
import platform
from collections.abc import Iterable
from pathlib import Path

import torch


def hardware(device: torch.device) -> str:
    """Return what computes: the GPU's name, or the processor's and its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"


def together(names: Iterable[str | None]) -> str:
    """Return the names of what computed one after another, each once; None and empty where it was not kept."""
    return "; ".join(dict.fromkeys(filter(None, names)))
