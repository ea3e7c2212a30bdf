"""Every setting of the server: an `OOD_*` variable and a flag each. What belongs to a model is in its bundle."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, FiniteFloat, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model_store.errors import BundleError
from model_store.images import DecodeLimits
from model_store.refs import SHIPPED, BundleRef
from model_store.runtime_names import RuntimeChoice
from service.errors import SettingsError
from service.watching.expectations import WatchOptions

PREFIX = "OOD_"


def _comma_separated(value: object) -> object:
    return [part for part in (piece.strip() for piece in value.split(",")) if part] if isinstance(value, str) else value


def _given_keys(value: object) -> object:
    keys = _comma_separated(value)
    if isinstance(value, str) and not keys:
        raise ValueError("api_keys is given and empty, which would open the server; unset it if that is meant")
    return keys


def _given_path(value: object) -> object:
    if value == "":
        raise ValueError("it is given and empty, which would be the working directory; unset it, or name a folder")
    return value


def _origins(value: object) -> object:
    origins = _comma_separated(value)
    for origin in origins if isinstance(origins, list) else ():
        if origin not in ("*", "null") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\sA-Z/?#*]+", origin):
            raise ValueError(
                f"{origin!r} is no origin that a browser sends: scheme, host and port, in lower case and no more, as "
                "in https://example.com"
            )
    return origins


def _require_bundle_ref(name: str) -> None:
    try:
        BundleRef.parse(name)
    except BundleError as err:
        raise ValueError(str(err)) from None


def _default_cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "energy-ood"
    except RuntimeError:
        raise SettingsError(f"this user has no home directory; set {PREFIX}CACHE_DIR") from None


Folder = Annotated[Path, BeforeValidator(_given_path)]
CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated)]


class Settings(BaseSettings):
    """The server's configuration, frozen. Unknown names and impossible values are refused."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", validate_default=False)

    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="HTTP processes; 1 runs the models itself, more stand in front of one process that does.",
    )

    store: Folder = Field(default=SHIPPED, description="Folder of bundles, `<name>/<version>/`; ours if not given.")
    models: CommaSeparated = Field(
        default=("cifar10",),
        description="Bundles to serve, `name` (its newest version) or `name@version`, comma-separated; the first is "
        "the default one.",
    )
    runtime: RuntimeChoice = Field(
        default="auto",
        description="How networks run; `auto` takes the fastest that is there and agrees with the bundle: CUDA graphs "
        "on a GPU, OpenVINO on the CPU, else eager PyTorch.",
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of a forward pass; all cores if not given."
    )
    cache_dir: Folder = Field(
        default_factory=_default_cache, description="Where converted networks are kept, so that they are made once."
    )

    max_batch_size: int = Field(default=64, ge=1, le=1024, description="Most images in one forward pass.")
    max_queue_images: int = Field(
        default=1024,
        ge=1,
        description="Images that may wait for one model, and requests that may wait to be read; beyond them requests "
        "get 429.",
    )
    max_pending_bytes: int = Field(
        default=256 * 2**20,
        ge=1,
        description="Bytes of request bodies that may be held at once, of all requests; beyond them requests get 429.",
    )
    decode_threads: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, description="Images decoded at once; the cores if not given."
    )

    max_images_per_request: int = Field(default=64, ge=1, description="Images in one request.")
    max_request_bytes: int = Field(default=64 * 2**20, ge=1, description="Bytes of one request's body.")
    max_image_bytes: int = Field(default=DecodeLimits.max_bytes, ge=1, description="Bytes of one encoded image.")
    max_image_pixels: int = Field(
        default=DecodeLimits.max_pixels, ge=1, description="Width times height of one image; checked on its header."
    )
    max_decode_memory_bytes: int = Field(
        default=DecodeLimits.max_memory_bytes, ge=1, description="Memory that decoding one image may take."
    )

    deadline_s: FiniteFloat = Field(
        default=10.0,
        gt=0,
        description="Seconds that a request may take, from its last byte; later ones get 504. A request's own "
        "`X-Deadline-Ms` header may shorten it.",
    )
    body_timeout_s: FiniteFloat = Field(
        default=30.0, gt=0, description="Seconds that a client may take to send its body."
    )
    stall_s: FiniteFloat = Field(
        default=60.0, gt=0, description="Seconds after which a forward pass that has not returned turns health red."
    )
    drain_delay_s: FiniteFloat = Field(
        default=0.0,
        ge=0,
        description="Seconds between SIGTERM, when readiness fails, and the closing of the listener: time for load "
        "balancers to look away.",
    )
    drain_timeout_s: FiniteFloat = Field(
        default=45.0, gt=0, description="Seconds that accepted requests have to finish after the listener has closed."
    )

    watch_window_images: int = Field(
        default=WatchOptions.window_images,
        ge=100,
        le=100_000,
        description="Last images that the window figures are of.",
    )
    watch_hours_between_false_alarms: FiniteFloat = Field(
        default=WatchOptions.hours_between_false_alarms,
        gt=0,
        description="Least mean hours of in-distribution traffic between two alarms.",
    )
    watch_images_per_hour: FiniteFloat = Field(
        default=WatchOptions.images_per_hour,
        gt=0,
        description="Images that a server is expected to judge in an hour: what turns those hours into images.",
    )
    watch_ood_share: FiniteFloat = Field(
        default=WatchOptions.ood_share,
        gt=0,
        lt=1,
        description="Share of OOD images that the alarm is tuned for; of larger ones it tells sooner.",
    )
    state_dir: Folder | None = Field(
        default=None,
        description="Folder of this server alone, in which window and alarm survive a restart; none if not given.",
    )

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_given_keys)] = Field(
        default=(),
        description="Bearer tokens, comma-separated, any of which opens the server; without them it is open.",
    )
    public_metrics: bool = Field(default=True, description="Whether /metrics needs no token.")
    public_health: bool = Field(default=True, description="Whether /healthz, /readyz and /v2/health need no token.")
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_origins)] = Field(
        default=(),
        description="Origins whose web pages may call the server, comma-separated, `*` for all; none if not given.",
    )
    capture_dir: Folder | None = Field(
        default=None, description="Folder for a sample of the images judged, with their verdicts; off if not given."
    )
    capture_max_bytes: int = Field(
        default=2**30, ge=2**20, description="Bytes that captured images may take on disk; the oldest make room."
    )
    capture_days: FiniteFloat = Field(default=30.0, gt=0, le=36500, description="Days after which they are deleted.")
    capture_flagged_share: FiniteFloat = Field(
        default=1.0, ge=0, le=1, description="Share of flagged images that is captured."
    )
    capture_control_share: FiniteFloat = Field(
        default=0.01, ge=0, le=1, description="Share of the other images that is captured, to compare with."
    )
    capture_images_per_minute: FiniteFloat = Field(
        default=60.0,
        gt=0,
        description="Images captured a minute, of each of the two kinds, at most on average; so many may come at once.",
    )
    capture_flush_s: FiniteFloat = Field(
        default=5.0,
        gt=0,
        description="Seconds for which captured images are gathered before they are written together.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log lines to write; `info` has one line a request."
    )

    @model_validator(mode="after")
    def _limits_fit_together(self) -> Self:
        if not self.models:
            raise ValueError("models is empty; name at least one bundle, as in cifar10")
        for name in self.models:
            _require_bundle_ref(name)
        if self.max_images_per_request > self.max_queue_images:
            raise ValueError(
                f"max_images_per_request is {self.max_images_per_request}, above max_queue_images "
                f"{self.max_queue_images}; such a request could never be queued"
            )
        if self.max_request_bytes > self.max_pending_bytes:
            raise ValueError(
                f"max_request_bytes is {self.max_request_bytes}, above max_pending_bytes {self.max_pending_bytes}; "
                "such a request could never be held"
            )
        if self.watch_options.images_between_false_alarms < 2:
            raise ValueError(
                f"watch_hours_between_false_alarms is {self.watch_hours_between_false_alarms}, watch_images_per_hour "
                f"{self.watch_images_per_hour}; their product, images between false alarms, must be at least 2"
            )
        return self

    @property
    def watch_options(self) -> WatchOptions:
        """What is watched, and how."""
        return WatchOptions(
            window_images=self.watch_window_images,
            hours_between_false_alarms=self.watch_hours_between_false_alarms,
            images_per_hour=self.watch_images_per_hour,
            ood_share=self.watch_ood_share,
        )

    @property
    def decode_limits(self) -> DecodeLimits:
        """What one image may cost."""
        return DecodeLimits(self.max_image_bytes, self.max_image_pixels, self.max_decode_memory_bytes)
