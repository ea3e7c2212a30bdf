"""ood-serve review: a contact sheet of captured images, to look at in a browser."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from service.errors import CaptureError

MAX_IMAGES = 1000
"""A page of a few MB, some 30 at worst, which a browser still scrolls with ease."""


def review(arguments: Sequence[str]) -> int:
    """Write the sheet that the arguments ask for; return the exit status.

    Raises:
        CaptureError: the folder holds nothing of ours, the page can't be written, or pyarrow is not installed.
    """
    options = _parser().parse_args(arguments)
    if find_spec("pyarrow") is None:
        raise CaptureError("review needs pyarrow, which is not installed: pip install 'energy-ood[capture]'")
    from service.capture.captured import read_captured
    from service.capture.sheet import page

    captured = read_captured(options.folder)
    for damaged in captured.damaged:
        print(f"ood-serve review: left out: {damaged}", file=sys.stderr)  # noqa: T201
    _write(options.out, page(captured.images, limit=options.limit, damaged=len(captured.damaged)))
    shown = min(len(captured.images), options.limit)
    print(f"{options.out}: {shown:,} of {len(captured.images):,} captured images")  # noqa: T201
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ood-serve review", description="Make a contact sheet of captured images: one HTML file, images inside."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a capture folder, or one model's or kind's within it")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the HTML file to write")
    parser.add_argument(
        "--limit", type=_positive, default=MAX_IMAGES, metavar="N", help=f"most images shown, {MAX_IMAGES} if not given"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _write(path: Path, text: str) -> None:
    """Write the whole file or none, readable for its owner alone, as the images in it are."""
    try:
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123
                file.write(text)
            Path(draft).replace(path)
        except BaseException:
            os.unlink(draft)  # noqa: PTH108
            raise
    except OSError as err:
        raise CaptureError(f"cannot write {path}: {err.strerror or err}") from err
