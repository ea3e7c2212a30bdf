"""How often the alarm on the flag rate rings by mistake, and how soon it rings in earnest: simulated, with its error.

Streams of independent flags go through the alarm's own steps (`service.watching.cusum`), side by side in arrays.

False alarms: the mean number of images from 0 to an alarm, at the bundle's mean false-flag rate and at the bound that
the alarm is made for; what is promised is that neither is below A. The statistic begins anew whenever it is back at 0,
so by Wald's identity that mean is E[images of an excursion from 0] / P(an excursion ends in an alarm). The latter is
rare: it is drawn under the shifted rate, where it is not, and weighted by its likelihood ratio.

Delay: the mean number of images from the change to the alarm, from 0, where OOD images are flagged at the stated
detection rate and all others at the mean false-flag rate.
"""

import argparse
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.bundle import read_manifest
from model_store.refs import SHIPPED, BundleRef
from model_store.store import Store
from service.watching.cusum import Cusum
from service.watching.expectations import WatchOptions, detection_rate, highest_rate, shifted_rate, stated_rate

SHARES = (0.10, 0.15, 0.30)
DEFAULT = WatchOptions().images_between_false_alarms


class Mean(NamedTuple):
    """A mean over runs, and its standard error."""

    value: float
    error: float

    @classmethod
    def of(cls, values: NDArray[np.generic]) -> "Mean":
        """Return that of values (runs,)."""
        return cls(float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values))))

    def __str__(self) -> str:
        digits = 0 if self.value >= 1000 else 1
        return f"{self.value:,.{digits}f} ± {self.error:,.{digits}f}"


class Excursions(NamedTuple):
    """From 0 to an alarm or back to 0: images and flags, int64 (runs,), and whether it was an alarm."""

    images: NDArray[np.int64]
    flags: NDArray[np.int64]
    alarms: NDArray[np.bool_]


def run_lengths(cusum: Cusum, flag_rate: float, runs: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return, for each run, how many images it takes from 0 to the alarm, int64 (runs,)."""
    lengths, going, statistic, images = np.zeros(runs, np.int64), np.arange(runs), np.zeros(runs), 0
    while going.size:
        images += 1
        steps = np.where(rng.random(going.size) < flag_rate, cusum.if_flagged, cusum.if_not)
        statistic = np.maximum(statistic + steps, 0.0)
        ended = statistic >= cusum.limit
        if ended.any():
            lengths[going[ended]] = images
            going, statistic = going[~ended], statistic[~ended]
    return lengths


def excursions(cusum: Cusum, flag_rate: float, runs: int, rng: np.random.Generator) -> Excursions:
    """Return so many of them."""
    found = Excursions(np.zeros(runs, np.int64), np.zeros(runs, np.int64), np.zeros(runs, np.bool_))
    going, statistic, flags, images = np.arange(runs), np.zeros(runs), np.zeros(runs, np.int64), 0
    while going.size:
        images += 1
        flagged = rng.random(going.size) < flag_rate
        flags, statistic = flags + flagged, statistic + np.where(flagged, cusum.if_flagged, cusum.if_not)
        ended = (statistic <= 0) | (statistic >= cusum.limit)
        found.images[going[ended]] = images
        found.flags[going[ended]] = flags[ended]
        found.alarms[going[ended]] = statistic[ended] > 0
        going, statistic, flags = going[~ended], statistic[~ended], flags[~ended]
    return found


def images_to_false_alarm(
    cusum: Cusum, flag_rate: float, likely_rate: float, runs: int, rng: np.random.Generator
) -> Mean:
    """Return the mean number of images from 0 to an alarm, however many those are.

    Args:
        cusum: its steps and its limit.
        flag_rate: that of the stream.
        likely_rate: one at which alarms are frequent.
        runs: excursions that are drawn, at either rate.
        rng: draws them.
    """
    lasting = Mean.of(excursions(cusum, flag_rate, runs, rng).images)
    drawn = excursions(cusum, likely_rate, runs, rng)
    log_ratio = drawn.flags * math.log(flag_rate / likely_rate)
    log_ratio += (drawn.images - drawn.flags) * math.log((1 - flag_rate) / (1 - likely_rate))
    alarm = Mean.of(np.where(drawn.alarms, np.exp(log_ratio), 0.0))
    mean = lasting.value / alarm.value
    return Mean(mean, mean * math.hypot(lasting.error / lasting.value, alarm.error / alarm.value))


def table(
    model: str, images_between: Sequence[float], ood_share: float, runs: int, seed: int, rates: Sequence[float] = ()
) -> str:
    """Return the table of a shipped bundle: a row a promise A, in images; `rates` are the false-flag rates to look at.

    Raises:
        ValueError: the bundle states no detection rate.
    """
    manifest = read_manifest(Store(SHIPPED).resolve(BundleRef.parse(model)))
    mean_rate, bound, detected = stated_rate(manifest), highest_rate(manifest), detection_rate(manifest)
    if detected is None:
        raise ValueError(f"{model} states no detection rate")
    shifted, rng = shifted_rate(manifest, ood_share), np.random.default_rng(seed)
    false_rates = rates or (mean_rate, bound)
    heads = ["A", *(f"false, flags at {rate:.4f}" for rate in false_rates), *(f"{s:.0%} OOD" for s in SHARES)]
    lines = [
        f"{manifest.name}@{manifest.version}: {mean_rate:.4f} of in-distribution images are flagged on average, "
        f"{bound:.4f} at most, {detected:.4f} of OOD ones; tuned for {shifted:.4f}. In images, {runs} runs.",
        "",
        f"| {' | '.join(heads)} |",
        "| --- |" + " --- |" * (len(heads) - 1),
    ]
    for least in images_between:
        cusum = Cusum(rate=bound, shifted_rate=shifted, limit=math.log(least))
        means = [images_to_false_alarm(cusum, rate, shifted, runs, rng) for rate in false_rates]
        for share in SHARES:
            flag_rate = (1 - share) * mean_rate + share * detected
            means.append(Mean.of(run_lengths(cusum, flag_rate, runs, rng)))
        lines.append(f"| {least:,.0f} | {' | '.join(map(str, means))} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate and print."""
    parser = argparse.ArgumentParser(prog="alarms", description=__doc__)
    parser.add_argument("--model", default="cifar10", help="a bundle that ships")
    parser.add_argument("--images", type=float, nargs="+", default=[1e3, 1e5, DEFAULT], help="A: images between alarms")
    parser.add_argument("--ood-share", type=float, default=WatchOptions.ood_share, help="what the alarm is tuned for")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[], help="false-flag rates, if not the mean one and its bound"
    )
    parser.add_argument("--runs", type=int, default=100_000, help="streams, or excursions, a figure")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    print(table(options.model, options.images, options.ood_share, options.runs, options.seed, options.rates))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
