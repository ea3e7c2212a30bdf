"""What a lower precision costs and gains, as a bundle's manifest has it."""

from pydantic import Field, FiniteFloat

from model_store.frozen import Frozen, Percent, Sha256


class Compared(Frozen):
    """One figure of the float32 network under eager PyTorch, and of the network as it was optimised."""

    float32: FiniteFloat
    optimised: FiniteFloat


class Optimisation(Frozen):
    """What was measured of an optimised bundle against the float32 bundle that it was made of.

    Both ran on `hardware`, over the same test images and OOD sets. A verdict is flipped where the two bundles differ in
    it, each at its own threshold; `flipped_uncalibrated` is what would flip had the threshold stayed.
    """

    source: str
    source_sha256: Sha256
    runtime: str
    created: str
    code_version: str
    libraries: dict[str, str]
    hardware: str
    images: int = Field(ge=1)
    max_logit_difference: FiniteFloat = Field(ge=0)
    changed_classes: Percent
    flipped: Percent
    flipped_uncalibrated: Percent
    accuracy: Compared
    """Of the test images, in percent."""
    fpr95: Compared | None
    """Of the verdict's score, the mean over the far OOD sets, or over the near ones where there are no others."""
    images_per_second: Compared
    batch_size: int = Field(ge=1)
    """Of the images per second."""
