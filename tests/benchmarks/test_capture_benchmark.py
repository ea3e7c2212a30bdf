"""The cost of capture, measured small."""

import pytest

from benchmarks import capture


@pytest.mark.slow
def test_every_part_has_a_figure_and_writing_takes_longer_than_looking(capsys: pytest.CaptureFixture[str]) -> None:
    assert capture.main(["--model", "cifar10@1", "--rounds", "1", "--images", "256"]) == 0
    _, _, *rows = capsys.readouterr().out.splitlines()
    cells = [row.strip("| ").split(" | ") for row in rows]
    figures = {name: float(figure.replace(",", "")) for name, figure in cells}
    assert len(figures) == 6
    assert 0 < figures["looking at an image that is not in the sample"] < figures["writing it, a file as it came"]


def test_images_that_are_lost_are_no_figure() -> None:
    told = capture.Nowhere()
    told.dropped("rate", 5)
    with pytest.raises(RuntimeError, match="5 images were dropped: queue_full"):
        told.dropped("queue_full", 5)
