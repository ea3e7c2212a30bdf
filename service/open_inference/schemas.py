"""What the protocol's endpoints take and send."""

from typing import Any, Literal

from pydantic import Field

from service.schemas import Reply


class ServerMetadata(Reply):
    """What serves, and which extensions of the protocol it has."""

    name: str
    version: str
    extensions: list[str]


class LiveReply(Reply):
    """The server is alive."""

    live: Literal[True]


class ReadyReply(Reply):
    """The server takes requests."""

    ready: Literal[True]
    live: Literal[True]


class ModelReadyReply(Reply):
    """The model takes requests."""

    name: str
    ready: Literal[True]


class TensorMetadata(Reply):
    """A tensor of a model."""

    name: str
    datatype: str
    shape: list[int] = Field(description="-1 is any number of images.")


class ModelMetadata(Reply):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorConfig(Reply):
    """A tensor of one image, as Triton's model configuration has it; `reshape` where it has no sides."""

    name: str
    data_type: str
    dims: list[int]
    reshape: dict[str, list[int]] | None = None


class ModelConfig(Reply):
    """A model in the terms of Triton's model configuration."""

    name: str
    platform: str
    max_batch_size: int = Field(description="Images that one request may have.")
    input: list[TensorConfig]
    output: list[TensorConfig]


class IndexEntry(Reply):
    """A model of the repository; `version` is empty where it is not known."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class RequestInput(Reply):
    """The input tensor; `data` is left out where it follows the JSON in binary."""

    name: Literal["IMAGE"]
    shape: list[int] = Field(description="[N, H, W, 3] of pixels, [N] of encoded files.")
    datatype: Literal["UINT8", "BYTES"]
    parameters: dict[str, Any] | None = Field(
        default=None, description="`binary_data_size`, bytes of this tensor after the JSON; `content_type`: `base64`."
    )
    data: list[Any] | None = Field(default=None, description="Row-major, flat or nested; files in base64.")


class RequestOutput(Reply):
    """An output that is wanted."""

    name: Literal["LABEL", "LOGITS", "NEGATIVE_ENERGY", "IS_OOD"]
    parameters: dict[str, Any] | None = Field(default=None, description="`binary_data`: whether it comes in binary.")


class InferRequest(Reply):
    """Images to judge; without `outputs` all of them come. The path says by which model, whatever stands here."""

    id: str | None = None
    parameters: dict[str, Any] | None = Field(
        default=None, description="`binary_data_output`: whether outputs come in binary; `content_type`: `base64`."
    )
    inputs: list[RequestInput]
    outputs: list[RequestOutput] | None = None
    model_name: str | None = None
    model_version: str | None = None


class ReplyOutput(Reply):
    """An output tensor; in binary it has `binary_data_size` and no `data`."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[bool | int | float] | None = Field(default=None, description="Row-major, flat.")


class InferReply(Reply):
    """The verdicts on a request's images, in their order."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, str | float] = Field(
        description="`sha256` of the bundle; `verdict`, the score that IS_OOD is of; `threshold`, that score's."
    )
    outputs: list[ReplyOutput]


class ProtocolError(Reply):
    """Every error's body."""

    error: str
