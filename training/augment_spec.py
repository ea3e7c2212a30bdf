"""How training images are changed, as a recipe says it."""

from pydantic import Field, FiniteFloat, model_validator

from model_store.frozen import Fraction, Frozen


class JpegShare(Frozen):
    """A share of the images is JPEG, each of a quality of its own, uniform between the two."""

    share: Fraction
    quality_min: int = Field(ge=1, le=100)
    quality_max: int = Field(ge=1, le=100)

    @model_validator(mode="after")
    def _quality_is_a_range(self) -> "JpegShare":
        _require_range(self, "quality")
        return self


class ResizeAugment(Frozen):
    """Scale a share of the images down and back up, each by a factor and a kernel of its own."""

    share: Fraction
    scale_min: float = Field(gt=0, le=1)
    scale_max: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> "ResizeAugment":
        _require_range(self, "scale")
        return self


class AugmentSpec(Frozen):
    """Random changes of each training image, the same for in-distribution and outliers."""

    flip: bool = True
    crop_padding: int = Field(default=4, ge=0)
    cutout: int | None = Field(default=None, ge=1)
    """The side of a square, in pixels, that is grey in every image; what lies outside the image is lost (DeVries and
    Taylor, 2017)."""
    noise_sd_max: FiniteFloat = Field(default=0.0, ge=0, le=64)
    """Gaussian noise, before JPEG: each image draws its own standard deviation, uniform in [0, this] grey levels."""
    jpeg: JpegShare | None = None
    resize: ResizeAugment | None = None
    """Before all else: what was resized was so before it was cropped, noisy and stored."""


def _require_range(spec: Frozen, name: str) -> None:
    least, most = getattr(spec, f"{name}_min"), getattr(spec, f"{name}_max")
    if least > most:
        raise ValueError(f"{name}_min is {least}, above {name}_max {most}")
