"""The cost of decoding, measured small."""

import pytest

from benchmarks import decoding


def test_each_load_has_every_file_so_often_and_they_take_turns() -> None:
    files, calls = [b"one", b"two"], []
    loads = [lambda file, name=name: calls.append((name, file)) for name in ("first", "second")]
    taken = decoding.measure(files, loads, repeats=2)
    turn = [(name, file) for name in ("first", "second") for file in decoding.ROUNDS * files]
    assert calls == 2 * turn
    assert [len(found) for found in taken] == [2, 2]


def test_table_has_a_row_a_kind_of_jpeg(capsys: pytest.CaptureFixture[str]) -> None:
    decoding.main(["--repeats", "1"])
    conditions, blank, _, _, *rows = capsys.readouterr().out.splitlines()
    assert "100 images of 32x32, least (median) of 1" in conditions
    assert blank == ""
    cells = [row.strip("| ").split(" | ") for row in rows]
    assert [(quality, chroma) for quality, chroma, *_ in cells] == [
        (str(quality), chroma) for quality in decoding.QUALITIES for chroma in decoding.CHROMA
    ]
    sizes = [int(row[2]) for row in cells]
    assert sizes == sorted(sizes)  # the better the quality, and chroma at full size, the more bytes
