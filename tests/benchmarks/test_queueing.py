"""The table of images a second and times in the queue, measured small."""

import re
import shutil

import pytest

from benchmarks import queueing


@pytest.mark.slow
def test_the_table_has_a_column_for_each_number_of_clients(capsys: pytest.CaptureFixture) -> None:
    """64 requests at once wait longer than one alone, which finds nobody before it."""
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    queueing.main(["--model", "cifar10@1", "--clients", "1", "64", "--seconds", "1"])
    said = capsys.readouterr().out
    rows = dict(re.findall(r"^\| ([a-z, ]+) \| (.*) \|$", said, re.MULTILINE))
    assert rows["clients"] == "1 | 64"
    assert all(float(cell) > 10 for cell in rows["images a second"].split(" | "))
    alone, many = (float(cell) for cell in rows["mean time in the queue, ms"].split(" | "))
    assert alone < many
    assert said.endswith("answers other than 200: none\n")
    assert "cifar10@1, " in said
