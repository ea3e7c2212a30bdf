"""The alarm on the flag rate: by hand, against an exact solution, and as it is promised for the shipped bundle."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from live import BUNDLE

from benchmarks import alarms
from model_store.bundle import read_manifest
from service.watching.cusum import Cusum
from service.watching.expectations import WatchOptions, detection_rate, highest_rate, shifted_rate, stated_rate

PAGE = (Path(__file__).parents[3] / "docs" / "monitoring.md").read_text()
RUNGS = 3
"""Of the lattice below: a flag goes up by so many, no flag down by one."""


def lattice(height: int) -> tuple[Cusum, float, float]:
    """Return an alarm whose steps are multiples of one, with its two rates; the limit lies below rung `height`."""
    rate, low, high = 0.1, 0.11, 0.9
    for _ in range(100):
        middle = (low + high) / 2
        steep = math.log(middle / rate) > RUNGS * math.log((1 - rate) / (1 - middle))
        low, high = (middle, high) if steep else (low, middle)
    rung = math.log((1 - rate) / (1 - low))
    assert math.log(low / rate) == pytest.approx(RUNGS * rung)
    return Cusum(rate=rate, shifted_rate=low, limit=(height - 0.5) * rung), rate, low


def exact_images_to_alarm(height: int, flag_rate: float) -> float:
    """Solve E[images from a rung] = 1 + sum of E[images from the next] on rungs 0 to `height` - 1."""
    moves = np.zeros((height, height))
    for rung in range(height):
        moves[rung, max(rung - 1, 0)] += 1 - flag_rate
        if rung + RUNGS < height:
            moves[rung, rung + RUNGS] += flag_rate
    return float(np.linalg.solve(np.eye(height) - moves, np.ones(height))[0])


def take(cusum: Cusum, *flags: bool) -> None:
    cusum.update(len(flags), [at for at, flag in enumerate(flags) if flag])


def images_to_alarm(cusum: Cusum, flags: np.ndarray) -> list[int]:
    """Return how many flags the alarm itself took, again and again from 0."""
    found, images = [], 0
    for flag in flags.tolist():
        take(cusum, flag)
        images += 1
        if cusum.shifted:
            found.append(images)
            cusum.restore(0.0, shifted=False)
            images = 0
    return found


def test_by_hand() -> None:
    cusum = Cusum(rate=0.1, shifted_rate=0.4, limit=math.log(15))  # a flag: ln 4; none: ln (2 / 3)
    take(cusum, False)
    assert cusum.statistic == 0.0
    take(cusum, True)
    assert cusum.statistic == pytest.approx(math.log(4))
    take(cusum, False, False)
    assert cusum.statistic == pytest.approx(math.log(16 / 9))
    assert (cusum.shifted, cusum.shifts) == (False, 0)
    take(cusum, True, True)  # 16 / 9 * 16 > 15
    assert (cusum.statistic, cusum.shifted, cusum.shifts) == (math.log(15), True, 1)
    take(cusum, True)
    assert (cusum.statistic, cusum.shifts) == (math.log(15), 1)
    take(cusum, *[False] * 6)  # (2 / 3) ** 6 is 1 / 11.4
    assert cusum.statistic == pytest.approx(math.log(15) + 6 * math.log(2 / 3))
    assert cusum.shifted
    take(cusum, False)
    assert (cusum.statistic, cusum.shifted, cusum.shifts) == (0.0, False, 1)
    take(cusum, True, True)
    assert (cusum.shifted, cusum.shifts) == (True, 2)


def test_how_images_are_dealt_out_makes_no_difference() -> None:
    rng = np.random.default_rng(5)
    flags = (rng.random(3000) < rng.choice([0.05, 0.3], 10).repeat(300)).tolist()
    one, many = (Cusum(rate=0.1, shifted_rate=0.2, limit=4.0) for _ in range(2))
    at = 0
    while at < len(flags):
        size = int(rng.integers(0, 70))
        take(many, *flags[at : at + size])
        for flag in flags[at : at + size]:
            take(one, flag)
        at += size
        assert many.statistic == pytest.approx(one.statistic, abs=1e-9)
        assert (many.shifted, many.shifts) == (one.shifted, one.shifts)
    assert one.shifts >= 2


@pytest.mark.parametrize(
    ("rate", "shifted_rate", "limit"), [(0.0, 0.1, 1), (0.1, 0.1, 1), (0.2, 0.1, 1), (0.1, 1.0, 1), (0.1, 0.2, 0)]
)
def test_impossible_rates_are_refused(rate: float, shifted_rate: float, limit: float) -> None:
    with pytest.raises(ValueError, match="they must be 0 < rate < shifted_rate < 1"):
        Cusum(rate=rate, shifted_rate=shifted_rate, limit=limit)


@pytest.mark.parametrize("height", [2, 4, 8, 16, 32])
def test_the_promise_holds_exactly_where_it_can_be_solved(height: int) -> None:
    cusum, rate, _ = lattice(height)
    promised = math.exp(cusum.limit)
    assert exact_images_to_alarm(height, rate) >= promised
    assert exact_images_to_alarm(height, 0.8 * rate) >= exact_images_to_alarm(height, rate)


def test_the_alarm_rings_as_often_as_solved() -> None:
    cusum, rate, _ = lattice(4)
    found = images_to_alarm(cusum, np.random.default_rng(0).random(400_000) < rate)
    mean = alarms.Mean.of(np.array(found))
    assert mean.error < 0.03 * mean.value
    assert abs(mean.value - exact_images_to_alarm(4, rate)) < 4 * mean.error


@pytest.mark.parametrize("flag_rate", [0.08, 0.1, 0.3])
@pytest.mark.parametrize("height", [4, 12])
def test_the_simulation_agrees_with_the_solution(height: int, flag_rate: float) -> None:
    cusum, _, shifted = lattice(height)
    rng = np.random.default_rng(1)
    exact = exact_images_to_alarm(height, flag_rate)
    rare = alarms.images_to_false_alarm(cusum, flag_rate, shifted, 20_000, rng)
    assert rare.error < 0.06 * rare.value
    assert abs(rare.value - exact) < 4 * rare.error
    if exact < 2000:
        direct = alarms.Mean.of(alarms.run_lengths(cusum, flag_rate, 2000, rng))
        assert abs(direct.value - exact) < 4 * direct.error


@pytest.mark.parametrize("hours", [1.0, 720.0])
def test_the_shipped_bundle_keeps_what_is_promised(hours: float) -> None:
    """False alarms no oftener than asked for, at the bound of the false-flag rate; delays below Wald's bound."""
    manifest, options = read_manifest(BUNDLE), WatchOptions(hours_between_false_alarms=hours)
    bound, shifted = highest_rate(manifest), shifted_rate(manifest, options.ood_share)
    cusum = Cusum(rate=bound, shifted_rate=shifted, limit=math.log(options.images_between_false_alarms))
    rng = np.random.default_rng(2)
    false = alarms.images_to_false_alarm(cusum, bound, shifted, 5000, rng)
    assert false.value - 4 * false.error >= hours * 10_000

    expected, detected = stated_rate(manifest), detection_rate(manifest)
    assert detected is not None
    delays = []
    for share in (0.10, 0.15, 0.30):
        flag_rate = (1 - share) * expected + share * detected
        delay = alarms.Mean.of(alarms.run_lengths(cusum, flag_rate, 2000, rng))
        drift = flag_rate * cusum.if_flagged + (1 - flag_rate) * cusum.if_not
        assert delay.value - 4 * delay.error <= (cusum.limit + cusum.if_flagged) / drift
        delays.append(delay.value)
    assert delays == sorted(delays, reverse=True)


def test_the_table_of_the_page_is_what_the_simulation_gives() -> None:
    rows = re.findall(r"^\| ([\d,]+) \| (.* ± .*) \|$", PAGE, re.M)
    assert [row[0] for row in rows] == [f"{least:,.0f}" for least in (1e3, 1e5, alarms.DEFAULT)]
    printed = alarms.table("cifar10@3", [1e3, 1e5, alarms.DEFAULT], WatchOptions.ood_share, 4000, seed=3)
    for (_, written), again in zip(rows, printed.splitlines()[-3:], strict=True):
        for there, here in zip(written.split(" | "), again.strip("| ").split(" | ")[1:], strict=True):
            (value, error), (simulated, its_error) = (
                [float(n) for n in cell.replace(",", "").split(" ± ")] for cell in (there, here)
            )
            assert abs(value - simulated) <= 4 * math.hypot(error, its_error) + 1
