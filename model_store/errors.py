"""What can go wrong with an image or a bundle. Messages say what was given, what is allowed and what to do."""


class ImageError(ValueError):
    """An encoded image that cannot become pixels. The message never holds a path or a traceback."""


class EmptyImageError(ImageError):
    """Zero bytes were given."""


class ImageTooLargeError(ImageError):
    """More encoded bytes than allowed."""


class TooManyPixelsError(ImageError):
    """The header announces more pixels than allowed; none were decoded."""


class UnsupportedImageError(ImageError):
    """The content is no image, or one of a format that is not read."""


class CorruptImageError(ImageError):
    """The header is an image's, the pixels are truncated or damaged."""


class BundleError(Exception):
    """A bundle that cannot be found, trusted, built or published."""


class BundleNotFoundError(BundleError):
    """No such name or version in the store."""


class BundleExistsError(BundleError):
    """The version is already published; versions are immutable."""


class IncompleteBundleError(BundleError):
    """The manifest or a file that it names is missing: a copy that did not finish."""


class ManifestError(BundleError):
    """The manifest is not one: broken JSON, unknown or missing fields, another schema version."""


class IntegrityError(BundleError):
    """A file's size or SHA-256 is not the manifest's."""


class NetworkMismatchError(BundleError):
    """The weights are not those of the network that the manifest names."""


class ScoreMismatchError(BundleError):
    """The fitted statistics are not those of the scores that the manifest names."""


class GoldenMismatchError(BundleError):
    """A golden image did not get its expected class and negative energy."""


class RuntimeUnavailableError(BundleError):
    """The runtime that was asked for cannot run this bundle here: not installed, not on this device, no conversion."""


class ExportError(BundleError):
    """A bundle that cannot be put into the form asked for, or that answers otherwise there."""


class CalibrationError(BundleError):
    """Calibration scores that give no valid threshold: too few, not finite, not sorted, or a k that is not theirs."""
