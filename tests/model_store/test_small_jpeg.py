"""JPEGs decoded without Pillow's parser, against Pillow with it: the same pixels, or left to it."""

import io
import struct
import time
from collections.abc import Iterator

import numpy as np
import pytest
from cost import by_pillow, seconds_in_turns
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from model_store import small_jpeg
from model_store.errors import CorruptImageError, ImageError, TooManyPixelsError
from model_store.images import DecodeLimits, decode, load
from model_store.manifest import PreprocessSpec

pytestmark = pytest.mark.filterwarnings("ignore")  # bare Pillow's, of metadata

SPEC = PreprocessSpec(
    height=32, width=32, resize="shorter_side", resize_to=32, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)
)


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth with some noise, so that all coefficients and both chroma channels count."""
    rng = np.random.default_rng(width * 1000 + height)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + rng.integers(-20, 21, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def jpeg(image: Image.Image, orientation: int | None = None, **options: object) -> bytes:
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][274] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">HH", marker, len(content) + 2) + content


def with_segment(marker: int, content: bytes) -> bytes:
    return PLAIN[:2] + segment(marker, content) + PLAIN[2:]


PLAIN = jpeg(picture(32, 32), quality=90)
FRAME = PLAIN[PLAIN.index(b"\xff\xc0") + 10 :][:9]
TINY_FRAME = segment(0xFFC0, struct.pack(">BHHB", 8, 8, 8, 3) + FRAME)
SAMPLES = {
    "4:2:0": PLAIN,
    "4:4:4": jpeg(picture(17, 9), quality=95, subsampling="4:4:4"),
    "progressive, 4:2:2": jpeg(picture(9, 23), progressive=True, subsampling="4:2:2"),
    "restart markers": jpeg(picture(33, 20), restart_marker_blocks=1),
    "EXIF": jpeg(picture(12, 5), orientation=6),
    "colour profile, comment": jpeg(picture(8, 8), icc_profile=b"profile", comment=b"comment"),
    "Adobe's RGB": jpeg(picture(16, 16), keep_rgb=True),
}


def quick(encoded: bytes) -> np.ndarray | None:
    header = small_jpeg.read_header(encoded)
    return None if header is None else small_jpeg.decode(encoded, header)


def bare_pillow(encoded: bytes) -> Image.Image:
    """Open and load; an error is Pillow's."""
    image = Image.open(io.BytesIO(encoded), formats=["JPEG"])
    image.load()
    return image


def assert_agrees(encoded: bytes) -> bool:
    """Check that pixels and EXIF are Pillow's where they are given at all, and return whether they are."""
    pixels = quick(encoded)
    if pixels is not None:
        expected = bare_pillow(encoded)
        np.testing.assert_array_equal(pixels, np.asarray(expected.convert("RGB")))
        assert small_jpeg.read_header(encoded) == (*expected.size, expected.info.get("exif"))
    return pixels is not None


def outcome(encoded: bytes, **options: object) -> tuple[bytes, tuple[int, ...]] | tuple[type, str]:
    try:
        pixels = decode(encoded, **options)
    except ImageError as err:
        return type(err), str(err)
    return pixels.tobytes(), pixels.shape


@pytest.fixture
def without_shortcut(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    with monkeypatch.context() as patch:
        patch.setattr(small_jpeg, "read_header", lambda _: None)
        yield patch


# The same pixels


@settings(max_examples=300, deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    progressive=st.booleans(),
    optimize=st.booleans(),
    restarts=st.sampled_from([0, 1, 3]),
    orientation=st.sampled_from([None, *range(1, 9)]),
    profile=st.sampled_from([None, b"p", b"p" * 200]),
)
def test_decode_is_pillows(
    size: tuple[int, int],
    quality: int,
    subsampling: str,
    progressive: bool,
    optimize: bool,
    restarts: int,
    orientation: int | None,
    profile: bytes | None,
) -> None:
    encoded = jpeg(
        picture(*size),
        orientation,
        quality=quality,
        subsampling=subsampling,
        progressive=progressive,
        optimize=optimize,
        restart_marker_blocks=restarts,
        icc_profile=profile,
    )
    assert assert_agrees(encoded)
    upright = ImageOps.exif_transpose(bare_pillow(encoded))
    np.testing.assert_array_equal(decode(encoded), np.asarray(upright))


@pytest.mark.parametrize("name", SAMPLES)
def test_every_kind_of_sample_takes_the_short_way(name: str) -> None:
    assert assert_agrees(SAMPLES[name])
    assert assert_agrees(SAMPLES[name] + b"what follows the image")


def test_pixels_can_be_written_to() -> None:
    assert load(PLAIN, SPEC).flags.writeable


@pytest.mark.parametrize("at_least", [None, (32, 32), (33, 20), (64, 64), (65, 65)])
@pytest.mark.parametrize("size", [(64, 64), (65, 129), (128, 128)])
def test_a_jpeg_to_be_scaled_while_decoding_is(
    size: tuple[int, int], at_least: tuple[int, int] | None, without_shortcut: pytest.MonkeyPatch
) -> None:
    encoded = jpeg(picture(*size), quality=90)
    expected = outcome(encoded, at_least=at_least)
    without_shortcut.undo()
    assert outcome(encoded, at_least=at_least) == expected


# Damage, and what is not of the usual kind


@pytest.mark.parametrize("name", SAMPLES)
def test_truncated_files_are_left_to_pillow(name: str, without_shortcut: pytest.MonkeyPatch) -> None:
    encoded = SAMPLES[name]
    pieces = [encoded[:end] for end in range(3, len(encoded))]
    expected = [outcome(piece) for piece in pieces]
    without_shortcut.undo()
    assert [outcome(piece) for piece in pieces] == expected
    assert expected[0][0] is CorruptImageError


@pytest.mark.parametrize("name", SAMPLES)
def test_every_byte_of_the_header_may_be_wrong(name: str) -> None:
    encoded = SAMPLES[name]
    scan = encoded.index(b"\xff\xda") + 16
    agreeing = 0
    for place in range(3, scan):
        for value in {0, 1, 16, 0xDA, 0xFF, encoded[place] ^ 1, encoded[place] ^ 0x80}:
            agreeing += assert_agrees(encoded[:place] + bytes([value]) + encoded[place + 1 :])
    assert agreeing > scan  # more than one of the values of a place is decoded, as a rule: those of tables


@settings(max_examples=500, deadline=None)
@given(
    name=st.sampled_from(sorted(SAMPLES)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 20),
)
def test_damaged_files_mean_what_pillow_says(name: str, changes: list[tuple[float, int]], cut: int) -> None:
    damaged = bytearray(SAMPLES[name])
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    del damaged[len(damaged) - cut :]
    assert_agrees(bytes(damaged))


MARKERS = st.one_of(st.sampled_from([0xFFC0, 0xFFC2, *small_jpeg._SHORTEST]), st.integers(0xFF00, 0xFFFF))
CONTENTS = st.one_of(
    st.binary(max_size=20),
    st.builds(
        lambda name, rest: name + rest,
        st.sampled_from([b"JFIF", b"Exif\0\0", b"ICC_PROFILE\0", b"Adobe", b"MPF\0", b"Photoshop 3.0\0", b"FPXR\0"]),
        st.binary(max_size=20),
    ),
    st.builds(lambda width, height: struct.pack(">BHHB9B", 8, height, width, 3, *FRAME), *[st.integers(0, 70)] * 2),
)


@settings(max_examples=500, deadline=None)
@given(
    segments=st.lists(st.tuples(MARKERS, CONTENTS), max_size=4),
    after=st.sampled_from([2, PLAIN.index(b"\xff\xc0"), PLAIN.index(b"\xff\xda")]),
)
def test_segments_of_any_kind_mean_what_pillow_says(segments: list[tuple[int, bytes]], after: int) -> None:
    more = b"".join(segment(marker, content) for marker, content in segments)
    assert_agrees(PLAIN[:after] + more + PLAIN[after:])


@given(noise=st.binary(max_size=200))
def test_noise_has_no_header(noise: bytes) -> None:
    assert small_jpeg.read_header(b"\xff\xd8\xff" + noise) is None


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(jpeg(picture(32, 32, "L")), id="grey"),
        pytest.param(jpeg(picture(32, 32, "CMYK")), id="CMYK"),
        pytest.param(jpeg(picture(129, 128)), id="large"),
        pytest.param(PLAIN + bytes(small_jpeg.MAX_BYTES), id="many bytes"),
        pytest.param(PLAIN[:2] + b"\xff" + PLAIN[2:], id="fill byte"),
        pytest.param(PLAIN[:2] + b"\xff\x01" + PLAIN[2:], id="marker that Pillow refuses and libjpeg skips"),
        pytest.param(with_segment(0xFFE0, b"JFIF"), id="JFIF without version, which Pillow refuses"),
        pytest.param(with_segment(0xFFEE, b"Adobe"), id="Adobe without version, which Pillow refuses"),
        pytest.param(with_segment(0xFFE2, b"ICC_PROFILE\0"), id="profile without number, which Pillow refuses"),
        pytest.param(with_segment(0xFFED, b"Photoshop 3.0\0" + b"8BIM\0\0"), id="Photoshop"),
        pytest.param(PLAIN.replace(b"\xff\xda", TINY_FRAME + b"\xff\xda"), id="two frames"),
        pytest.param(PLAIN[:2] + 2 * segment(0xFFE1, b"Exif\0\0II*\0") + PLAIN[2:], id="two EXIF blocks"),
        pytest.param(PLAIN.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), id="12 bits"),
        pytest.param(PLAIN.replace(b"\xff\xc0", b"\xff\xc9"), id="arithmetic coding"),
    ],
)
def test_what_is_not_usual_is_left_to_pillow(encoded: bytes) -> None:
    assert small_jpeg.read_header(encoded) is None


def test_many_segments_are_soon_read() -> None:
    encoded = b"\xff\xd8" + segment(0xFFFE, b"") * (small_jpeg.MAX_BYTES // 4 - 1)
    started = time.process_time()
    assert small_jpeg.read_header(encoded) is None
    assert time.process_time() - started < 0.1


# Limits


@pytest.mark.parametrize("limits", [DecodeLimits(max_pixels=32 * 32 - 1), DecodeLimits(max_memory_bytes=2**13)])
def test_no_pixel_is_decoded_of_what_is_beyond_a_limit(limits: DecodeLimits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_jpeg, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(TooManyPixelsError):
        decode(PLAIN, limits)


# Cost


def test_load_of_a_small_jpeg_costs_less_than_bare_pillow() -> None:
    ours, bare = seconds_in_turns(lambda: load(PLAIN, SPEC), lambda: by_pillow(PLAIN))
    assert min(ours) <= 0.9 * min(bare)
