"""What travels between workers and the engine's process comes out as it went in."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import BUNDLE
from pydantic import SecretStr

from model_store.bundle import read_manifest
from service.batcher import Waited
from service.engine_protocol import ScoreVerdict, Verdict
from service.errors import DeadlineExceededError, EngineDiedError, NotReadyError, QueueFullError
from service.processes.control import plain, revived
from service.processes.frames import HEADER, Frame, FrameReader, Kind, pack
from service.processes.messages import (
    Answered,
    Shape,
    Status,
    pack_answer,
    pack_ask,
    pack_refusal,
    pack_statuses,
    unpack_answer,
    unpack_ask,
    unpack_refusal,
    unpack_statuses,
)
from service.settings import Settings

FRAMES = st.lists(
    st.builds(Frame, st.sampled_from(Kind), st.integers(0, 2**64 - 1), st.binary(max_size=40)), max_size=5
)


@given(FRAMES, st.lists(st.integers(0, 300), max_size=8))
def test_frames_come_whole_however_the_stream_is_cut(frames: list[Frame], cuts: list[int]) -> None:
    stream = b"".join(pack(kind, number, len(payload)) + payload for kind, number, payload in frames)
    reader, found = FrameReader(), []
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for begin, end in pairwise(edges):
        found += reader.feed(stream[begin:end])
    assert found == frames


def test_a_frame_is_its_header_and_its_payload() -> None:
    assert pack(Kind.CANCEL, 3, 1) == bytes([1, 0, 0, 0, 0, 0, 0, 0, 2, 3, 0, 0, 0, 0, 0, 0, 0])
    with pytest.raises(ValueError, match="200 is not a valid Kind"):
        FrameReader().feed(HEADER.pack(0, 200, 0))


def test_pixels_arrive_as_they_were_whatever_lies_between_them() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    strided = images[::2, :, ::-1]  # neither in one piece nor in order
    shapes = {7: Shape((4, 5, 3), 10, ("negative_energy",))}
    payload = b"".join(pack_ask(7, list(strided), 12.5, all_scores=True, logits=False))
    asked = unpack_ask(payload, shapes)
    assert asked[:4] == (7, True, False, 12.5)
    np.testing.assert_array_equal(asked.pixels, strided)


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("logits", [False, True])
def test_answers_arrive_bit_for_bit(scores: bool, logits: bool) -> None:
    shape = Shape((1, 1, 3), 4, ("negative_energy", "knn"))
    random = np.random.default_rng(1)
    found = [
        Verdict(
            *(row, random.random(), random.normal(), random.random(), bool(row % 2)),
            scores={name: ScoreVerdict(random.normal(), random.random(), row == 0) for name in shape.scores}
            if scores
            else None,
            logits=random.normal(size=4).astype(np.float32) if logits else None,
        )
        for row in range(3)
    ]
    answered = unpack_answer(b"".join(pack_answer(Answered(Waited(found, 0.1, 0.2), 5, 6), shape)), shape)
    assert (answered.waited.queue_s, answered.waited.forward_s, answered.depth, answered.retry_after_s) == (
        0.1,
        0.2,
        5,
        6,
    )
    for got, sent in zip(answered.waited.results, found, strict=True):
        assert got[:6] == sent[:6]
        assert type(got.is_ood) is bool
        if logits:
            np.testing.assert_array_equal(got.logits, sent.logits)
        else:
            assert got.logits is None


@pytest.mark.parametrize(
    "error",
    [QueueFullError("full", 7), NotReadyError("stopping"), EngineDiedError("dead"), DeadlineExceededError("late")],
)
def test_refusals_keep_their_kind_and_text(error: Exception) -> None:
    found = unpack_refusal(pack_refusal(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert getattr(found, "retry_after_s", None) == getattr(error, "retry_after_s", None)


def test_what_nobody_foresaw_says_only_what_it_was() -> None:
    found = unpack_refusal(pack_refusal(KeyError("a client's secret")))
    assert type(found) is RuntimeError
    assert "KeyError" in str(found)
    assert "secret" not in str(found)


def test_statuses_and_shapes() -> None:
    statuses = [Status("ready", 0, 1), Status("stalled", 1024, 30)]
    assert unpack_statuses(pack_statuses(statuses)) == statuses
    assert Shape.of(read_manifest(BUNDLE)) == ((32, 32, 3), 10, ("negative_energy",))


def test_settings_reach_children_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets too, and whatever the environment says."""
    settings = Settings(workers=3, threads=None, models="cifar10, other@2", api_keys="first,second", stall_s=1.5)
    monkeypatch.setenv("OOD_PORT", "1")
    monkeypatch.setenv("OOD_THREADS", "5")
    found = revived(plain(settings))
    assert found == settings
    assert found.api_keys == (SecretStr("first"), SecretStr("second"))
