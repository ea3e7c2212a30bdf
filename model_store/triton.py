"""A bundle in a model repository of the Triton Inference Server.

<root>/<name>/config.pbtxt      what a request may be, for every version
              labels.txt        the classes, a line each, in the order of the logits
              <version>/model.onnx
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from model_store.bundle import Bundle
from model_store.errors import ExportError
from model_store.manifest import Manifest
from model_store.onnx_graph import INPUT, OUTPUTS, export_onnx

MAX_BATCH_SIZE = 256
LABELS = "labels.txt"


def export_triton(bundle: Bundle, root: Path) -> Path:
    """Export a bundle into a model repository, as the version that it is; return its version's directory.

    Versions of one model lie side by side where their classes and image size are the same. The version's directory
    appears whole, last.

    Raises:
        ExportError: the version is there already, or the versions there have another interface, or the bundle cannot be
            exported to ONNX, or the directory cannot be written.
    """
    manifest = bundle.manifest
    family = root / manifest.name
    folder = family / str(manifest.version)
    labels = "\n".join(manifest.classes) + "\n"
    interface = {family / "config.pbtxt": config(manifest).encode(), family / LABELS: labels.encode()}
    try:
        if folder.exists():
            raise ExportError(f"{folder} exists; remove it, or choose another directory than {root}")
        for path, content in interface.items():
            if path.exists() and path.read_bytes() != content:
                raise ExportError(
                    f"{path} is of other versions of {manifest.name}, with other classes or another image size, or was "
                    f"changed; choose another directory than {root}"
                )
        family.mkdir(parents=True, exist_ok=True)  # first: the export takes a while
        _write(family, interface, folder, export_onnx(bundle))
    except ExportError:
        with suppress(OSError):  # it stays if anything is in it
            family.rmdir()
        raise
    except OSError as err:
        raise ExportError(f"{err.filename or family} cannot be written ({err.strerror}); choose another --out") from err
    return folder


def _write(family: Path, interface: Mapping[Path, bytes], folder: Path, graph: bytes) -> None:
    for path, content in interface.items():
        path.write_bytes(content)
    incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=family))
    try:
        (incoming / "model.onnx").write_bytes(graph)
        incoming.chmod(0o755)
        incoming.rename(folder)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def config(manifest: Manifest) -> str:
    """Return the model configuration: requests of any number of images up to the limit, batched as they come.

    Triton gives no tensor without a dimension besides the batch, so one number an image has shape (N, 1) there.
    """
    height, width, classes = manifest.preprocess.height, manifest.preprocess.width, len(manifest.classes)
    logits, energy, flag = OUTPUTS
    return f"""name: {json.dumps(manifest.name)}
backend: "onnxruntime"
max_batch_size: {MAX_BATCH_SIZE}
input [
  {{ name: "{INPUT}" data_type: TYPE_UINT8 dims: [ {height}, {width}, 3 ] }}
]
output [
  {{ name: "{logits}" data_type: TYPE_FP32 dims: [ {classes} ] label_filename: "{LABELS}" }},
  {{ name: "{energy}" data_type: TYPE_FP32 dims: [ 1 ] reshape {{ shape: [ ] }} }},
  {{ name: "{flag}" data_type: TYPE_BOOL dims: [ 1 ] reshape {{ shape: [ ] }} }}
]
dynamic_batching {{ }}
"""
