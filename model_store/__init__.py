"""The bundle: what a trained classifier is on disk, and the only code that runs one."""

__version__ = "0.1.0"
