"""The cost of capture, measured small: every image of a turn is written, and the difference is that of the medians."""

import pytest

from benchmarks import capture


@pytest.mark.slow
def test_every_way_is_measured_beside_capture_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "IMAGES", 64)
    found = capture.measure("cifar10@1", 1)
    assert {case for case, _ in found} == {"JPEG, not flagged", "JPEG, flagged", "npy of 64, not flagged"}
    assert all(len(values) == 1 and values[0] > 0 for values in found.values())
    for case in {case for case, _ in found}:
        assert found[case, "on, every image kept"] > found[case, "off"]


def test_the_table_shows_what_is_above_off() -> None:
    rows = capture.table({("JPEG", "off"): [10.0, 30.0, 20.0], ("JPEG", "on"): [24.0, 21.0, 22.5]}).splitlines()
    assert rows[2].endswith("| 20 (10 to 30) | 0.0 |")
    assert rows[3].endswith("| 2.5 |")


def test_a_turn_that_loses_images_is_no_figure() -> None:
    progress = capture.Progress()
    progress.dropped("rate", 5)
    with pytest.raises(RuntimeError, match=r"5 images were dropped \(queue_full\)"):
        progress.dropped("queue_full", 5)
