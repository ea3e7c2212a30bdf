"""Tables by hand, from rows by hand."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from training.errors import TrainingError
from training.reproduce import figures, report, tables
from training.reproduce.methods import margin_method
from training.reproduce.results import (
    InDistributionRecord,
    Intervals,
    MethodScores,
    Origin,
    Results,
    Row,
    SetRecord,
    read_results,
    read_scores,
    rows,
    write_scores,
)
from training.reproduce.size import read_size

ROOT = Path(__file__).parents[2]


def _set(source: str, published: str | None = None) -> SetRecord:
    return SetRecord(
        source=source, images=10, encoding="lossless", sha256="0" * 64, paper=None, published=published, differs="much"
    )


def _row(method: str, seed: int, ood: str, fpr95: float, error: float = 6.0) -> Row:
    return Row(
        in_distribution="cifar10",
        network="WRN-10-1",
        method=method,
        seed=seed,
        ood_set=ood,
        n_in=100,
        n_ood=50,
        fpr95=fpr95,
        auroc=100 - fpr95 / 2,
        aupr=100 - fpr95 / 4,
        fpr95_ood_positive=fpr95,
        aupr_ood_positive=50.0,
        test_error=error,
        ci95=Intervals(fpr95=(fpr95 - 1, fpr95 + 2), auroc=(0.0, 100.0), aupr=(0.0, 100.0)),
    )


def _results(*of_methods: Row, seeds: tuple[int, ...] = (0, 1)) -> Results:
    return Results(
        commit="abc1234",
        command="ood-train reproduce --out here",
        hardware="an abacus",
        seconds=3600.0,
        size=read_size(Path("tests")).model_copy(update={"seeds": seeds}),
        in_distribution={
            "cifar10": InDistributionRecord(
                title="CIFAR-10",
                train=_set("cifar10/train"),
                test=_set("cifar10/test"),
                outliers=_set("outliers/train"),
                far_ood={"svhn": _set("svhn/test", "svhn"), "celeba": _set("celeba/test")},
                near_ood={"cifar100": _set("cifar100/test")},
                missing={},
            )
        },
        choices={},
        fine_tunings={},
        rows=of_methods,
    )


def _rows(method: str, seed: int, svhn: float, celeba: float, near: float) -> tuple[Row, ...]:
    given = {"svhn": svhn, "celeba": celeba, "cifar100": near}
    return tuple(_row(method, seed, ood, fpr95) for ood, fpr95 in given.items())


ONE_SEED = _results(*_rows("softmax", 0, 40, 20, 80), *_rows("energy", 0, 30, 10, 60))
ROWS_OF_TWO = (*ONE_SEED.rows, *_rows("softmax", 1, 44, 24, 82), *_rows("energy", 1, 30, 16, 64))
TWO_SEEDS = _results(*ROWS_OF_TWO)


def test_table1_by_hand() -> None:
    (subject,) = report.subjects(ONE_SEED)
    assert tables.table1(subject).splitlines()[4:] == [
        "| no | svhn | 40.00 / 30.00 | 48.49 / 35.59 | 80.00 / 85.00 | 91.89 / 90.96 | 90.00 / 92.50 | 98.27 / 97.64 |",
        "| no | celeba | 20.00 / 10.00 | none / none | 90.00 / 95.00 | none / none | 95.00 / 97.50 | none / none |",
        "| no | **average** | 30.00 / 20.00 | 51.04 / 33.01 | 85.00 / 90.00 | 90.90 / 91.88 | 92.50 / 95.00 "
        "| 97.92 / 97.83 |",
        "| no | cifar100 (near) | 80.00 / 60.00 | none / none | 60.00 / 70.00 | none / none | 80.00 / 85.00 "
        "| none / none |",
    ]


def test_rows_of_seeds_that_are_the_sizes_no_longer_are_left_out_but_those_of_margins_on_validation() -> None:
    pair = read_size(Path("tests")).margins.pairs()[0]
    trial = _row(margin_method(pair), 0, "svhn", 50)
    (subject,) = report.subjects(_results(*ROWS_OF_TWO, trial, seeds=(1,)))
    assert subject.rows == (*ROWS_OF_TWO[len(ONE_SEED.rows) :], trial)


def test_single_far_set_stands_beside_its_own_figure_of_the_paper_not_the_mean() -> None:
    record = ONE_SEED.in_distribution["cifar10"]
    alone = record.model_copy(update={"far_ood": {"svhn": record.far_ood["svhn"]}})
    (subject,) = report.subjects(ONE_SEED.model_copy(update={"in_distribution": {"cifar10": alone}}))
    svhn, average = (line.split(" | ")[3] for line in tables.table1(subject).splitlines()[4:6])
    assert (svhn, average) == ("48.49 / 35.59", "51.04 / 33.01")


def test_results_of_a_size_that_is_none_are_refused(tmp_path: Path) -> None:
    other = ONE_SEED.model_dump(mode="json")
    other["size"]["colour"] = "blue"
    (tmp_path / "results.json").write_text(json.dumps(other))
    with pytest.raises(TrainingError, match=r"(?s)is no results\.json of ood-train reproduce: .*colour"):
        read_results(tmp_path / "results.json")


def test_table2_is_mean_and_sd_over_seeds_of_the_mean_over_far_sets() -> None:
    """Of softmax 30 and 34: sd 2 sqrt 2. Of energy 20 and 23: sd 3 / sqrt 2. Near: 80 and 82, 60 and 64."""
    (subject,) = report.subjects(TWO_SEEDS)
    softmax, energy = tables.table2(subject).splitlines()[2:]
    assert softmax.startswith("| softmax score | 32.00 ± 2.83 | 51.04 | 84.00 ± 1.41 | 90.90 | 92.00 ± 0.71 | 97.92 |")
    assert softmax.endswith("| 6.00 ± 0.00 | 5.16 | 81.00 ± 1.41 | 59.50 ± 0.71 |")
    assert energy.startswith("| energy score | 21.50 ± 2.12 | 33.01 |")
    assert energy.endswith("| 62.00 ± 2.83 | 69.00 ± 1.41 |")


def test_single_training_shows_intervals_over_images_and_several_their_spread() -> None:
    one, two = (tables.by_set(report.subjects(results)[0]) for results in (ONE_SEED, TWO_SEEDS))
    assert "| energy score | 30.00 [29.0, 32.0] | 10.00 [9.0, 12.0] | 60.00 [59.0, 62.0] |" in one
    assert "| energy score | 30.00 ± 0.00 | 13.00 ± 4.24 | 62.00 ± 2.83 |" in two


def test_table3_is_auroc_as_a_fraction_beside_the_papers() -> None:
    (subject,) = report.subjects(ONE_SEED)
    table = tables.table3(subject)
    assert "| energy score | 0.85 | 0.70 | 0.95 | 0.91 | 0.87 | 0.78 |" in table
    assert "| JEM-softmax |  |  |  | 0.89 | 0.87 | 0.79 |" in table


def test_report_states_the_conditions(tmp_path: Path) -> None:
    text = report.report(ONE_SEED, tmp_path)
    for stated in ("WRN-10-1", "2 epochs of pre-training", "commit abc1234", "an abacus", "60 minutes", "seeds 0, 1"):
        assert stated in text
    assert "![" not in text  # no figure lies there


def test_mean_and_sd_by_hand() -> None:
    assert [tables.mean_and_sd(values) for values in ([], [1.0], [1.0, 3.0])] == ["", "1.00", "2.00 ± 1.41"]


def test_document_is_renewed_between_its_own_markers_alone() -> None:
    document = f"a\n<!-- results: end -->\n{report.BEGIN}\nold\n{report.END}\nb\n"
    renewed = report.renew(document, ONE_SEED)
    assert renewed.startswith(f"a\n<!-- results: end -->\n{report.BEGIN}\n| method |")
    assert renewed.endswith(f"{report.END}\nb\n")
    assert "Mean over the far sets (svhn, celeba; near: cifar100)" in renewed
    with pytest.raises(TrainingError, match="has no lines '<!-- reproduction: generated by"):
        report.renew("plain", ONE_SEED)


def test_scores_are_kept_and_read_as_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = MethodScores(
        rng.normal(1, 1, 50).astype(np.float32), rng.random(50) < 0.8, {"svhn": rng.normal(0, 1, 30).astype(np.float32)}
    )
    write_scores(tmp_path, scores)
    again = read_scores(tmp_path)
    np.testing.assert_array_equal(again.test, scores.test)
    np.testing.assert_array_equal(again.correct, scores.correct)
    np.testing.assert_array_equal(again.ood["svhn"], scores.ood["svhn"])
    assert again.correct.dtype == np.bool_


def test_row_by_hand() -> None:
    """In-distribution 4, 3, 1 against OOD 2, 0, as in the tests of the metrics; one of three classified wrongly."""
    scores = MethodScores(np.float32([4, 3, 1]), np.array([True, False, True]), {"svhn": np.float32([2, 0])})
    origin = Origin(in_distribution="cifar10", network="WRN", method="energy", seed=3, draws=1, resamples=20)
    (row,) = rows(origin, scores)
    assert (row.n_in, row.n_ood, row.seed, row.ood_set) == (3, 2, 3, "svhn")
    figures = (row.fpr95, row.auroc, row.aupr, row.fpr95_ood_positive, row.aupr_ood_positive, row.test_error)
    assert figures == pytest.approx((50, 250 / 3, 275 / 3, 100 / 3, 250 / 3, 100 / 3), abs=1e-4)


def test_roc_curve_by_hand() -> None:
    """In-distribution 4, 3, 1 against OOD 2, 0: two of three before the first OOD image, all before the second."""
    curve = figures._roc(np.float32([4, 3, 1]), np.float32([2, 0]))
    assert curve[250:500].min() == curve[-1] == 1.0  # from half of the OOD images on
    assert curve[0] == pytest.approx(2 / 3)
    assert np.trapezoid(curve, figures.ROC_POINTS) == pytest.approx(5 / 6, abs=0.01)


def test_histograms_of_an_odd_number_of_methods_leave_no_empty_axes() -> None:
    scores = MethodScores(np.float32([4, 3, 1]), np.array([True] * 3), {"svhn": np.float32([2, 0])})
    shown = dict.fromkeys(list(figures.HISTOGRAMS)[:3], scores)
    figure = figures.histograms(shown, "svhn", "CIFAR-10", dict.fromkeys(shown, 0.0))
    assert [axis.get_visible() for axis in figure.axes] == [True, True, True, False]


@pytest.mark.parametrize("document", ["README.md", "docs/results/README.md"])
def test_tables_of_the_documents_are_generated_from_the_kept_results(document: str) -> None:
    text = (ROOT / document).read_text()
    assert report.renew(text, read_results(ROOT / "docs/results/paper/results.json")) == text


def test_document_that_is_not_utf8_is_refused(
    ood_train: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    shutil.copy(ROOT / "docs/results/paper/results.json", tmp_path)
    document = tmp_path / "page.md"
    document.write_bytes("naïve\n".encode("latin-1"))
    finished = ood_train("report", tmp_path, "--into", document)
    assert finished.returncode == 1
    assert "page.md is not UTF-8" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert document.read_bytes() == b"na\xefve\n"
