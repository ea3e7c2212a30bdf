"""Converted networks on disk: a network is converted once, not at every start."""

import hashlib
import logging
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from model_store.runtimes.openvino_ir import CONVERTER_REVISION, OpenVinoIr, import_openvino

logger = logging.getLogger(__name__)

_DIGEST_BYTES = 32


class OpenVinoCache:
    """One converted network's place in a directory: the SHA-256 of what follows, then graph and weights.

    It only ever saves time: what cannot be read is converted again, what cannot be written is not kept, and both are
    logged. Entries appear whole or not at all, so processes may share a directory. The digest finds damage, not
    malice: whoever can write the directory is trusted as much as whoever can write the bundle.
    """

    def __init__(self, folder: Path, bundle_sha256: str) -> None:
        version = re.sub(r"[^\w.-]", "_", import_openvino().get_version())
        self.path = folder / f"{bundle_sha256}-openvino-{version}-{CONVERTER_REVISION}.ir"

    def read(self) -> OpenVinoIr | None:
        """Return the converted network; None where there is none that is whole."""
        try:
            return _unpacked(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, SafetensorError) as err:
            logger.warning("%s cannot be used and is made again: %s", self.path, err)
            return None

    def write(self, ir: OpenVinoIr) -> None:
        """Keep a converted network, in place of any other."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _replace(self.path, _packed(ir))
        except OSError as err:
            logger.warning("%s cannot be written; the network is converted anew at every start: %s", self.path, err)

    def drop(self) -> None:
        """Forget the converted network."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def _packed(ir: OpenVinoIr) -> bytes:
    parts = {"graph": np.frombuffer(ir.graph, np.uint8), "weights": np.frombuffer(ir.weights, np.uint8)}
    content = save(parts)
    return hashlib.sha256(content).digest() + content


def _unpacked(packed: bytes) -> OpenVinoIr:
    digest, content = packed[:_DIGEST_BYTES], packed[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError(f"its {len(packed)} bytes are not those that were written")
    parts = load(content)
    return OpenVinoIr(graph=parts["graph"].tobytes(), weights=parts["weights"].tobytes())


def _replace(path: Path, content: bytes) -> None:
    """Write beside `path`, then rename, readable by all: the directory may be filled by another user."""
    handle, name = tempfile.mkstemp(prefix=".incoming-", dir=path.parent)
    incoming = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        incoming.chmod(0o644)
        incoming.replace(path)
    finally:
        incoming.unlink(missing_ok=True)
