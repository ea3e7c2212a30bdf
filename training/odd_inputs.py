"""Inputs of no class that a service meets: blank and noisy frames, digits, screenshots; as encoded files."""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from training import encode

NOISE_IMAGES = 200
DIGIT_IMAGES = 200
SCREENSHOTS = 50
_TEXT = """
the of and a to in is you that it he was for on are as with his they at be this have from or one had by word
invoice total date login password settings error file edit view help search cancel submit page chapter figure
"""


@cache
def odd_inputs(height: int, width: int, seed: int) -> Mapping[str, Sequence[bytes]]:
    """Return PNG files by kind: black, white, noise (uniform, at the network's size), digits, screenshot.

    They are made once in a process, some seconds' work, and take some 5 MB.

    The digits are scikit-learn's handwritten ones (UCI, 8x8 grey), white on black in a 28x28 frame as MNIST's.
    """
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 256, (NOISE_IMAGES, height, width, 3), dtype=np.uint8)
    return {
        "black": [encode.png(np.zeros((height, width, 3), np.uint8))],
        "white": [encode.png(np.full((height, width, 3), 255, np.uint8))],
        "noise": [encode.png(image) for image in noise],
        "digits": [encode.png(image) for image in _digits(generator)],
        "screenshot": [encode.png(_screenshot(generator)) for _ in range(SCREENSHOTS)],
    }


def _digits(generator: np.random.Generator) -> list[NDArray[np.uint8]]:
    from sklearn.datasets import load_digits

    digits = load_digits().images
    chosen = generator.choice(len(digits), DIGIT_IMAGES, replace=False)
    return [_mnist_like(digits[row]) for row in chosen]


def _mnist_like(digit: NDArray[np.float64]) -> NDArray[np.uint8]:
    small = Image.fromarray((digit * (255 / 16)).astype(np.uint8))
    frame = Image.new("RGB", (28, 28))
    frame.paste(small.resize((20, 20), Image.Resampling.BICUBIC), (4, 4))
    return np.asarray(frame)


def _screenshot(generator: np.random.Generator) -> NDArray[np.uint8]:
    page = Image.new("RGB", (1280, 800), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=int(generator.integers(14, 24)))
    draw.rectangle((0, 0, 1280, 48), fill=tuple(generator.integers(0, 256, 3).tolist()))
    for top in range(70, 780, 30):
        words = generator.choice(_TEXT.split(), size=int(generator.integers(6, 16)))
        draw.text((40, top), " ".join(words), fill="black", font=font)
    return np.asarray(page)
