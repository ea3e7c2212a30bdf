from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from model_store.evaluation import (
    Detection,
    Evaluation,
    NetworkEvaluation,
    OodSetEvaluation,
    ScoreEvaluation,
    ScoreOnOodSet,
    ServedEvaluation,
)
from model_store.manifest import Calibration
from model_store.predictor import Scores
from training import report
from training.errors import TrainingError
from training.evaluate import NetworkScores


def _detection(fpr95: float) -> Detection:
    return Detection(fpr95=fpr95, auroc=100 - fpr95 / 4, aupr=100 - fpr95 / 10)


def _network(error: float, *fpr95: float) -> NetworkEvaluation:
    names = ("near", "svhn", "places")  # the near one first: order in tables is by far_ood, not by the mapping
    return NetworkEvaluation(
        test_error=error,
        ood={
            name: OodSetEvaluation(
                images=3000, drawn=2000, softmax=_detection(2 * value), energy=_detection(value), missed=value / 2
            )
            for name, value in zip(names, fpr95, strict=True)
        },
    )


@pytest.fixture
def evaluation() -> Evaluation:
    return Evaluation(
        test_images=10_000,
        far_ood=("svhn", "places"),
        fine_tuned=_network(6.5, 40, 4, 10),
        untuned=_network(6.0, 45, 20, 32),
        served={"as they are": ServedEvaluation(images=10_000, accuracy=93.5, false_flags=5.01)},
        odd_inputs={},
    )


def test_detection_table_by_hand(evaluation: Evaluation) -> None:
    assert report.detection_table(evaluation).splitlines() == [
        "| FPR95, % | softmax, untuned | energy, untuned | **energy, fine-tuned** | missed as served |",
        "| --- | --- | --- | --- | --- |",
        "| svhn | 40.00 | 20.00 | 4.00 | 2.00 |",
        "| places | 64.00 | 32.00 | 10.00 | 5.00 |",
        "| **mean of the far sets** | **52.00** | **26.00** | **7.00** | **3.50** |",
        "| near (near) | 90.00 | 45.00 | 40.00 | 20.00 |",
    ]


def test_detection_table_without_far_sets_has_no_mean(evaluation: Evaluation) -> None:
    names = {"near": evaluation.fine_tuned.ood["near"]}
    tuned = evaluation.fine_tuned.model_copy(update={"ood": names})
    near = evaluation.model_copy(update={"far_ood": (), "fine_tuned": tuned, "untuned": None, "served": {}})
    assert report.detection_table(near).splitlines() == [
        "| FPR95, % | **energy** |",
        "| --- | --- |",
        "| near (near) | 40.00 |",
    ]


def test_tables_hold_all_three_metrics_and_their_means(evaluation: Evaluation) -> None:
    tables = report.tables(evaluation, "negative_energy")
    assert "| svhn | 3,000 | 40.00 / 90.00 / 96.00 | 20.00 / 95.00 / 98.00 | 8.00 / 98.00 / 99.20 |" in tables
    assert "| 7.00 / 98.25 / 99.30 |" in tables
    assert "Test error: 6.00 % untuned, 6.50 % fine-tuned." in tables
    assert "| as they are | 93.50 | 5.01 |" in tables


def _score(fpr95: float, missed: float) -> ScoreEvaluation:
    names = ("near", "svhn", "places")
    return ScoreEvaluation(
        false_flags=fpr95 / 8,
        ood={
            name: ScoreOnOodSet(**_detection(factor * fpr95).model_dump(), missed=factor * missed)
            for name, factor in zip(names, (3, 1, 2), strict=True)
        },
    )


def test_scores_table_by_hand(evaluation: Evaluation) -> None:
    scores = {"negative_energy": _score(20, 10), "relative_mahalanobis": _score(24, 30)}
    several = evaluation.model_copy(update={"scores": scores})
    shown = report.scores_table(several, "relative_mahalanobis").splitlines()
    assert shown[:4] == [
        "| score | FPR95, mean of the far sets | FPR95, near (near) | missed, mean of the far sets "
        "| missed, near (near) | false flags |",
        "| --- | --- | --- | --- | --- | --- |",
        "| negative energy | 30.00 | 60.00 | 15.00 | 30.00 | 2.50 |",
        "| **relative mahalanobis (verdict)** | 36.00 | 72.00 | 45.00 | 90.00 | 3.00 |",
    ]
    assert "\n".join(shown) in report.tables(several, "relative_mahalanobis")
    without_far = several.model_copy(update={"far_ood": ()})
    assert report.scores_table(without_far, "negative_energy").startswith("| score | FPR95, near (near) | FPR95, svhn")


def test_tables_of_negative_energy_alone_are_what_they_were(evaluation: Evaluation) -> None:
    tables = report.tables(evaluation, "negative_energy").split("\n\n")
    assert [part.splitlines()[0].split(" | ")[0] for part in tables] == [
        "| OOD set",
        "FPR95 / AUROC / AUPR in %, in-distribution positive; 10,000 test images against draws of at most 2,000 OOD "
        "images. Test error: 6.00 % untuned, 6.50 % fine-tuned.",
        "| test images sent",
        "| input of no class",
    ]


def _scores(confidence: float, negative_energy: float) -> Scores:
    """Scores of 20 images, spread over 0.05 and 0.5 from these least ones."""
    spread = np.linspace(0, 1, 20, dtype=np.float32)
    nothing = torch.zeros(20, 2)
    return Scores(nothing, nothing, negative_energy + spread / 2, confidence + spread / 20)


def test_histograms_show_each_series_under_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drawn polygon reaches from the least to the greatest of its scores."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    sets = {"svhn": _scores(0.1, 1), "places": _scores(0.2, 2), "near": _scores(0.6, 6)}
    untuned = {name: _scores(0.01, -1) for name in sets}
    report.plot_histograms(
        tmp_path / "histograms.png",
        ("svhn", "places"),
        NetworkScores(_scores(0.9, 9), sets),
        NetworkScores(_scores(0.5, 5), untuned),
    )
    found = {axes.get_title(): {patch.get_label(): _drawn(patch) for patch in axes.patches} for axes in figures[0].axes}
    assert found == {
        "softmax score, untuned": {"in-distribution": (0.5, 0.55), "far OOD": (0.01, 0.06)},
        "negative energy, untuned": {"in-distribution": (5, 5.5), "far OOD": (-1, -0.5)},
        "softmax score, fine-tuned": {"in-distribution": (0.9, 0.95), "far OOD": (0.1, 0.25)},
        "negative energy, fine-tuned": {"in-distribution": (9, 9.5), "far OOD": (1, 2.5)},
    }


def test_histograms_of_scores_that_are_neighbours_are_drawn(tmp_path: Path) -> None:
    """As an untrained network gives them: there are fewer numbers between them than bins."""
    close = np.nextafter(np.float32(0.1), np.array([0, 1], np.float32))
    scores = Scores(torch.zeros(2, 2), torch.zeros(2, 2), close, close)
    report.plot_histograms(tmp_path / "histograms.png", ("svhn",), NetworkScores(scores, {"svhn": scores}), None)
    assert (tmp_path / "histograms.png").exists()


def _drawn(polygon: Any) -> tuple[Any, Any]:
    """Return from where to where the polygon is above zero, to a bin's width."""
    x, y = polygon.get_xy().T
    bin_width = np.diff(np.unique(x)).max()
    return pytest.approx(x[y > 0].min(), abs=bin_width), pytest.approx(x[y > 0].max(), abs=bin_width)


@pytest.mark.parametrize("document", ["", report.BEGIN, f"{report.END}{report.BEGIN}"])
def test_document_without_markers_is_refused(document: str) -> None:
    with pytest.raises(TrainingError, match="results"):
        report.replace_block(document, "new")


def test_card_says_how_calibration_images_were_sent() -> None:
    sent = report._sent({"calibrate": {"jpeg": {"share": 0.4, "quality_min": 60, "quality_max": 100}}})
    assert "as JPEG with probability 0.4, of a quality drawn from 60 to 100" in sent
    assert report._sent({"calibrate": {"jpeg": None}}) == report._sent({"calibrate": {}}) == ""


def test_promise_is_the_methods() -> None:
    def promise(method: str, delta: float | None = None) -> str:
        return report._promise(
            Calibration(method=method, alpha=0.05, delta=delta, n=100, k=5, threshold=1.0, histogram_edges=(0.0, 1.0))
        )

    assert "probability at most alpha" in promise("conformal")
    assert "confidence 0.95" in promise("pac", 0.05)
    assert "promises nothing" in promise("empirical")
