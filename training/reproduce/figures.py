"""Pictures: score histograms (Fig. 3), FPR95 by temperature (Fig. 4a) and by margins (Fig. 4b), ROC curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.reproduce.methods import margin_method, temperature_method
from training.reproduce.results import InDistributionRecord, MethodScores, Row, method_folder, read_scores
from training.reproduce.size import Size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IN_COLOUR, OOD_COLOUR = "#1f77b4", "#ff7f0e"
HISTOGRAMS = {
    "softmax": "softmax score, classifier",
    "energy": "negative energy, classifier",
    "outlier_exposure": "softmax score, Outlier Exposure",
    "energy_finetuned": "negative energy, energy fine-tuning",
}
ROC_METHODS = ("softmax", "energy", "odin", "mahalanobis", "chosen")
ROC_POINTS = np.linspace(0, 1, 501)
DPI = 110


def draw(out: Path, target: Path, name: str, record: InDistributionRecord, size: Size, rows: Sequence[Row]) -> None:
    """Draw every figure of one in-distribution set that there are scores or rows for, into `target`.

    out: the folder that holds the scores.

    Raises:
        FileNotFoundError: scores that a figure needs are not there.
    """
    target.mkdir(parents=True, exist_ok=True)
    measured = {row.method for row in rows}
    run = f"seed-{size.seeds[0]}"

    def scores(methods: Sequence[str]) -> dict[str, MethodScores]:
        there = [method for method in methods if method in measured]
        return {method: read_scores(method_folder(out, name, run, method)) for method in there}

    shown = scores(tuple(HISTOGRAMS))
    if shown:
        ood = "svhn" if "svhn" in record.far_ood else next(iter(record.far_ood))
        _save(histograms(shown, ood, record.title, _fpr95(rows, ood, size)), target / f"histograms-{name}.png")
    curves = scores((*ROC_METHODS, *size.finetunings))
    if curves:
        _save(roc_curves(curves, tuple(record.far_ood)), target / f"roc-{name}.png")
    by_temperature = {t: _means(rows, temperature_method(t), record) for t in size.temperature.temperatures}
    if any(by_temperature.values()):
        _save(temperatures({t: v for t, v in by_temperature.items() if v}), target / f"temperature-{name}.png")
    by_margins = {(p.margin_in, p.margin_out): _means(rows, margin_method(p), record) for p in size.margins.pairs()}
    if any(by_margins.values()):
        mean = {pair: float(np.mean(list(v.values()))) for pair, v in by_margins.items() if v}
        _save(margins(mean), target / f"margins-{name}.png")


def histograms(shown: dict[str, MethodScores], ood: str, title: str, fpr95: dict[str, float]) -> "Figure":
    """Return Fig. 3: densities of softmax score and negative energy, test images against one OOD set."""
    figure = _figure(5.2 * 2, 3.3 * ((len(shown) + 1) // 2))
    axes = figure.subplots((len(shown) + 1) // 2, 2, squeeze=False).flat
    for (method, scores), axis in zip(shown.items(), axes, strict=False):  # in this order: none of the axes is lost
        edges = np.histogram_bin_edges(np.concatenate([scores.test, scores.ood[ood]]).astype(np.float64), bins=60)
        for values, colour, label in (
            (scores.test, IN_COLOUR, f"in-distribution ({title})"),
            (scores.ood[ood], OOD_COLOUR, f"out-of-distribution ({ood})"),
        ):
            axis.hist(values, edges, histtype="stepfilled", density=True, alpha=0.6, color=colour, label=label)
        axis.set(title=f"FPR95: {fpr95[method]:.2f}", xlabel=HISTOGRAMS[method], ylabel="density")
        axis.legend(fontsize=8)
    for axis in list(axes):
        axis.set_visible(False)
    return figure


def roc_curves(curves: dict[str, MethodScores], far_ood: Sequence[str]) -> "Figure":
    """Return ROC curves, averaged over the far sets: test images accepted by OOD images accepted."""
    figure = _figure(6.4, 5.2)
    axis = figure.subplots()
    for method, scores in curves.items():
        true_positives = np.mean([_roc(scores.test, scores.ood[name]) for name in far_ood], axis=0)
        axis.plot(100 * ROC_POINTS, 100 * true_positives, label=method.replace("_", " "))
    axis.axhline(95, color="0.6", linewidth=0.8, linestyle=":")
    axis.set(xlabel="OOD images accepted, %", ylabel="in-distribution images accepted, %", xlim=(0, 100), ylim=(0, 101))
    axis.set_title("ROC, mean over the far OOD sets")
    axis.legend(loc="lower right", fontsize=8)
    return figure


def temperatures(by_temperature: dict[float, dict[str, float]]) -> "Figure":
    """Return Fig. 4a: FPR95 of each far set, and their mean, by temperature on a log scale."""
    figure = _figure(6.4, 4.4)
    axis = figure.subplots()
    values = list(by_temperature)
    for name in next(iter(by_temperature.values())):
        axis.plot(values, [by_temperature[t][name] for t in values], linewidth=1, marker=".", label=name)
    mean = [np.mean(list(by_temperature[t].values())) for t in values]
    axis.plot(values, mean, color="black", linewidth=2.5, marker="o", label="mean")
    axis.set(xscale="log", xlabel="temperature", ylabel="FPR95, %", title="Effect of temperature")
    axis.legend(fontsize=8)
    return figure


def margins(mean_fpr95: dict[tuple[float, float], float]) -> "Figure":
    """Return Fig. 4b: mean FPR95 by m_in, the strictest to the right, a line for each m_out."""
    figure = _figure(6.4, 4.4)
    axis = figure.subplots()
    for margin_out in dict.fromkeys(margin_out for _, margin_out in mean_fpr95):
        points = sorted((margin_in, f) for (margin_in, other), f in mean_fpr95.items() if other == margin_out)[::-1]
        axis.plot(*zip(*points, strict=True), marker="o", label=f"m_out = {margin_out:g}")
    axis.invert_xaxis()
    axis.set(xlabel="m_in", ylabel="mean FPR95, %", title="Effect of margins")
    axis.legend(fontsize=8)
    return figure


def _roc(test: NDArray[np.float32], ood: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the share of test images accepted where each share of ROC_POINTS of the OOD images is."""
    from sklearn.metrics import roc_curve

    labels = np.arange(len(test) + len(ood)) < len(test)
    false_positives, true_positives, _ = roc_curve(labels, np.concatenate([test, ood]))
    interpolated: NDArray[np.float64] = np.interp(ROC_POINTS, false_positives, true_positives)
    return interpolated


def _means(rows: Sequence[Row], method: str, record: InDistributionRecord) -> dict[str, float]:
    """Return a method's FPR95 on each far set, over seeds; empty if it was not measured."""
    found = {name: [r.fpr95 for r in rows if r.method == method and r.ood_set == name] for name in record.far_ood}
    return {name: float(np.mean(values)) for name, values in found.items() if values}


def _fpr95(rows: Sequence[Row], ood: str, size: Size) -> dict[str, float]:
    return {row.method: row.fpr95 for row in rows if row.ood_set == ood and row.seed == size.seeds[0]}


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # a second to import; not needed where nothing is drawn

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=DPI)
