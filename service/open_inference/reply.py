"""Verdicts -> a reply of the protocol, in JSON, or JSON and what was asked for in binary behind it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json
from starlette.responses import Response

from service.engine_protocol import Verdict
from service.open_inference.model import OUTPUTS, OutputName, ServedModel
from service.open_inference.request import ParsedRequest

JSON_LENGTH_HEADER = "Inference-Header-Content-Length"


def reply(model: ServedModel, asked: ParsedRequest, verdicts: Sequence[Verdict]) -> Response:
    """Return the outputs that a request asked for, in its order."""
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for wanted in asked.outputs:
        array = column(wanted.name, verdicts)
        output = {"name": wanted.name, "datatype": OUTPUTS[wanted.name], "shape": array.shape}
        if wanted.binary:
            binary.append(array.tobytes())
            outputs.append(output | {"parameters": {"binary_data_size": array.nbytes}})
        else:
            outputs.append(output | {"data": array.ravel().tolist()})
    head = to_json(
        {"model_name": model.name, "model_version": model.version}
        | ({} if asked.id is None else {"id": asked.id})
        | {"parameters": _parameters(model), "outputs": outputs}
    )
    if not binary:
        return Response(head, media_type="application/json")
    return Response(
        b"".join([head, *binary]),
        media_type="application/octet-stream",
        headers={JSON_LENGTH_HEADER: str(len(head))},
    )


def column(name: OutputName, verdicts: Sequence[Verdict]) -> NDArray[Any]:
    """Return one output of N verdicts, little-endian: (N,), of LOGITS (N, K)."""
    if name == "LABEL":
        return np.array([verdict.class_id for verdict in verdicts], "<i8")
    if name == "LOGITS":
        return np.array([verdict.logits for verdict in verdicts], "<f4")
    if name == "NEGATIVE_ENERGY":
        return np.array([verdict.negative_energy for verdict in verdicts], "<f4")
    return np.array([verdict.is_ood for verdict in verdicts], np.bool_)


def _parameters(model: ServedModel) -> dict[str, str | float]:
    bundle = model.engine.bundle
    verdict = bundle.manifest.verdict
    return {"sha256": bundle.sha256, "verdict": verdict, "threshold": bundle.manifest.calibrations[verdict].threshold}
