"""Where and when figures were measured: a figure without its conditions says nothing."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import model_store
from training.publish import commit

LIBRARIES = ("torch", "openvino", "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "pillow", "numpy")
PEERS = ("litserve", "mosec", "fastapi", "starlette", "uvicorn")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
VECTORS = ("avx2", "avx512f", "avx512_vnni", "amx_bf16")


def conditions(module: str) -> dict[str, Any]:
    """Describe this machine, what is installed, and the command: `module` with this process's arguments."""
    return {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_field("model name"),
        "cores": len(os.sched_getaffinity(0)),
        "vector_instructions": [name for name in VECTORS if name in _cpu_field("flags").split()],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "load_average_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "energy_ood": model_store.__version__,
        "commit": commit(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "torch_default_threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in THREADS if name in os.environ},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def peer_versions(python: Path) -> dict[str, str]:
    """Return what is installed for another interpreter."""
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {PEERS!r}}}))"
    found: dict[str, str] = json.loads(subprocess.run([python, "-c", code], capture_output=True, check=True).stdout)
    return found


def _cpu_field(name: str) -> str:
    found = re.search(rf"^{name}\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else "unknown"


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
