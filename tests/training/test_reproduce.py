"""The experiments of size `tests`, whole: as a command, killed in the middle, and held against what they should be."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from scipy.special import logsumexp, softmax
from sklearn.metrics import roc_auc_score

from training.datasets import load_set
from training.errors import DataError, ResumeError
from training.metrics import fpr95
from training.progress import silent
from training.reproduce.benchmark import Benchmark, read_benchmark
from training.reproduce.choices import Validation
from training.reproduce.methods import Only, methods, read_only
from training.reproduce.networks import Lab, Setting
from training.reproduce.report import BEGIN, END, report
from training.reproduce.results import (
    Results,
    Row,
    method_folder,
    read_results,
    read_scores,
    recomputed_rows,
    write_results,
)
from training.reproduce.run import Reproduction
from training.reproduce.size import Size, read_size
from training.run_folder import write_json
from training.splits import split_calibration

CPU = torch.device("cpu")
EVERYTHING = Only()
OodTrain = Callable[..., subprocess.CompletedProcess[str]]
OOD_TRAIN = (sys.executable, "-c", "from training.cli import main; main()")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "200"}
KILLED_AT = "seed-0: measuring energy_finetuned"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # what the command makes counts to the first test


@pytest.fixture(scope="module")
def size() -> Size:
    return read_size(Path("tests"))


@pytest.fixture(scope="module")
def benchmark() -> Benchmark:
    return read_benchmark()


@pytest.fixture(scope="module")
def printed(image_sets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """Run the command, kill it in the middle, run it again; return its folder and what was said before and after."""
    out = tmp_path_factory.mktemp("reproduce") / "out"
    command = [*OOD_TRAIN, "reproduce", "--size", "tests", "--data", str(image_sets), "--out", str(out)]
    before = []
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            before.append(line.strip())
            if KILLED_AT in line:
                process.send_signal(signal.SIGKILL)
                break
    finished = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == str(out / "report.md")
    return out, before, [line.strip() for line in finished.stderr.splitlines()]


@pytest.fixture(scope="module")
def out(printed: tuple[Path, list[str], list[str]]) -> Path:
    return printed[0]


@pytest.fixture(scope="module")
def results(out: Path) -> Results:
    return read_results(out / "results.json")


def reproduction(
    out: Path,
    data: Path,
    size: Size,
    benchmark: Benchmark,
    say: Callable[[str], None] = silent,
    only: Only = EVERYTHING,
) -> Reproduction:
    return Reproduction(benchmark, size, only, data, out, "again", CPU, silent, say)


def test_killed_command_goes_on_where_it_was(printed: tuple[Path, list[str], list[str]]) -> None:
    _, before, after = printed
    done = {line for line in before[:-1] if "measuring" in line or "training " in line or "choosing" in line}
    assert {"cifar10, seed-0: training classifier", "cifar10, seed-0: measuring odin"} < done
    assert not done & set(after)
    assert f"cifar10, {KILLED_AT}" in after


def test_every_method_has_a_row_of_every_seed_and_set(results: Results, size: Size) -> None:
    found = [(row.method, row.seed, row.ood_set) for row in results.rows]
    seeds = {method.name: size.seeds if method.margins is None else (0,) for method in methods(size)}
    expected = {(name, seed, ood) for name in seeds for seed in seeds[name] for ood in ("textures", "svhn")}
    assert set(found) == expected
    assert len(found) == len(expected)
    assert {"softmax", "energy", "odin", "mahalanobis", "chosen", "ours+knn", "energy T=1000"} < set(seeds)


def test_rows_are_whole_and_finite(results: Results) -> None:
    for row in results.rows:
        assert (row.in_distribution, row.network, row.n_in) == ("cifar10", "WRN-10-1", 100)
        assert row.n_ood == {"textures": 38, "svhn": 40}[row.ood_set]
        figures = [row.fpr95, row.auroc, row.aupr, row.fpr95_ood_positive, row.aupr_ood_positive, row.test_error]
        assert np.isfinite(figures).all()
        for metric in ("fpr95", "auroc", "aupr"):
            low, high = getattr(row.ci95, metric)
            assert 0 <= low <= getattr(row, metric) <= high <= 100


def test_file_is_json_of_the_agreed_keys(out: Path) -> None:
    text = (out / "results.json").read_text()
    assert {"commit", "command", "hardware", "seconds", "rows"} < json.loads(text).keys()
    keys = "in_distribution network method seed ood_set n_in n_ood fpr95 auroc aupr fpr95_ood_positive "
    keys += "aupr_ood_positive test_error ci95"
    assert list(json.loads(text)["rows"][0]) == keys.split()
    assert sum(line.startswith('    {"in_distribution"') for line in text.splitlines()) == len(json.loads(text)["rows"])


def test_numbers_can_be_recomputed_from_the_scores_kept(out: Path, results: Results) -> None:
    folders = [path.parent for path in sorted((out / "scores").rglob("rows.json"))]
    assert len(results.rows) == 2 * len(folders)
    for at in range(0, len(folders), 7):
        assert recomputed_rows(folders[at]) == results.rows[2 * at : 2 * at + 2]


def row_of(results: Results, method: str, seed: int, ood: str) -> Row:
    return next(row for row in results.rows if (row.method, row.seed, row.ood_set) == (method, seed, ood))


@pytest.mark.parametrize(
    ("method", "network", "score"),
    [
        ("softmax", "classifier", lambda logits: softmax(logits, axis=1).max(axis=1)),
        ("energy", "classifier", lambda logits: logsumexp(logits, axis=1)),
        ("energy T=10", "classifier", lambda logits: 10 * logsumexp(logits / 10, axis=1)),
        ("max_logit", "classifier", lambda logits: logits.max(axis=1)),
        ("outlier_exposure", "outlier_exposure", lambda logits: softmax(logits, axis=1).max(axis=1)),
        ("energy_finetuned", "energy_finetuned", lambda logits: logsumexp(logits, axis=1)),
        ("outlier_exposure+negative_energy", "outlier_exposure", lambda logits: logsumexp(logits, axis=1)),
    ],
)
def test_method_is_its_score_of_its_networks_logits(
    out: Path, image_sets: Path, benchmark: Benchmark, results: Results, method: str, network: str, score: Callable
) -> None:
    kept = load_file(method_folder(out, "cifar10", "seed-1", f"{network}-outputs") / "outputs.safetensors")
    inside, outside = (score(kept[f"{name}/logits"].astype(np.float64)) for name in ("test", "svhn"))
    row = row_of(results, method, 1, "svhn")
    auroc = roc_auc_score(np.repeat([1, 0], [100, 40]), np.concatenate([inside, outside]))
    assert row.auroc == pytest.approx(100 * auroc, abs=0.03)  # one pair of 4,000 that float32 ties is 0.0125
    assert row.fpr95 == pytest.approx(100 * fpr95(in_distribution=inside, out_of_distribution=outside), abs=2.6)
    labels = load_set("cifar10/test", image_sets, benchmark.preprocess, None).labels
    assert row.test_error == pytest.approx(100 * (kept["test/logits"].argmax(axis=1) != labels).mean())


def test_networks_were_trained_apart(out: Path) -> None:
    def logits(run: str, network: str) -> np.ndarray:
        return load_file(method_folder(out, "cifar10", run, f"{network}-outputs") / "outputs.safetensors")[
            "svhn/logits"
        ]

    networks = [
        logits(run, name)
        for run in ("seed-0", "seed-1")
        for name in ("classifier", "outlier_exposure", "energy_finetuned", "ours")
    ]
    assert not any(np.allclose(networks[i], networks[j]) for i in range(8) for j in range(i))


def test_perturbed_methods_are_not_their_one_pass_scores(out: Path, results: Results) -> None:
    chosen = results.choices["cifar10"]["mahalanobis"].chosen
    scores = {
        method: read_scores(method_folder(out, "cifar10", "seed-0", method)).test
        for method in ("mahalanobis", "mahalanobis_one_pass")
    }
    same = np.allclose(scores["mahalanobis"], scores["mahalanobis_one_pass"], rtol=1e-4)
    assert same == (chosen == "eps=0")


def test_chosen_is_the_score_that_validation_chose(out: Path, results: Results) -> None:
    chosen = {name: results.choices["cifar10"][f"score-{name}"].chosen for name in ("classifier", "ours")}
    by_score = {"max_softmax": "softmax", "negative_energy": "energy", "mahalanobis": "mahalanobis_one_pass"}
    of_classifier = by_score.get(chosen["classifier"], chosen["classifier"])
    for method, same in (("chosen", of_classifier), ("ours", f"ours+{chosen['ours']}")):
        first, second = (row_of(results, name, 0, "svhn").model_copy(update={"method": ""}) for name in (method, same))
        assert first == second


def test_margins_of_fine_tuning_are_those_that_validation_chose(results: Results) -> None:
    chosen = results.choices["cifar10"]["margins"].chosen
    objective = results.fine_tunings["cifar10"]["energy_finetuned"]["objective"]
    assert f"m_in={objective['margin_in']:g} m_out={objective['margin_out']:g}" in chosen


def test_choices_are_the_same_without_any_test_set(
    image_sets: Path, benchmark: Benchmark, size: Size, results: Results, tmp_path: Path
) -> None:
    """Of a folder that holds training images and outliers alone, and code that is given no others."""
    for name in ("cifar10/train", "outliers"):
        shutil.copytree(image_sets / name, tmp_path / "data" / name)
    train, outliers = (
        load_set(source, tmp_path / "data", benchmark.preprocess, None)
        for source in ("cifar10/train", "outliers/train")
    )
    kept, held_out = split_calibration(train, 40, size.validation.seed)
    setting = Setting("cifar10", benchmark.in_distribution["cifar10"], size, benchmark.preprocess, benchmark.augment)
    lab = Lab(setting, size.validation.seed, kept, outliers, tmp_path / "lab", CPU, silent, silent)
    validation = Validation(lab, held_out, tmp_path / "choices")
    chosen = results.choices["cifar10"]
    odin = validation.odin()
    assert f"T={odin.temperature:g} eps={odin.epsilon:g}" == chosen["odin"].chosen
    assert f"eps={validation.mahalanobis().epsilon:g}" == chosen["mahalanobis"].chosen
    assert validation.score("classifier", None) == chosen["score-classifier"].chosen
    margins = validation.margins()
    assert f"m_in={margins.margin_in:g} m_out={margins.margin_out:g}" in chosen["margins"].chosen


def test_without_a_network_of_its_own_validation_chooses_on_the_one_that_is_shown(
    image_sets: Path, size: Size, benchmark: Benchmark, out: Path, results: Results, tmp_path: Path
) -> None:
    """Which is then trained as the validation network is otherwise, and so are the choices: one network, not two."""
    validation = size.validation.model_copy(update={"own_network": False})
    shared = size.model_copy(update={"seeds": (0,), "validation": validation})
    only = Only(parts=frozenset({"odin", "margins"}))
    found = reproduction(tmp_path, image_sets, shared, benchmark, only=only).all()
    assert [path.name for path in (tmp_path / "networks/cifar10").iterdir()] == ["seed-0"]
    chosen = results.choices["cifar10"]["odin"]
    assert found.choices["cifar10"]["odin"] == chosen
    of_margins = [row for row in results.rows if row.method.startswith("energy_bounded")]
    assert [row for row in found.rows if row.method != "odin"] == of_margins
    weights = "classifier/weights.safetensors"
    ours, apart = (folder / "networks/cifar10" for folder in (tmp_path, out))
    assert (ours / "seed-0" / weights).read_bytes() == (apart / "validation" / weights).read_bytes()
    assert found.in_distribution["cifar10"].train.images == 0.8 * results.in_distribution["cifar10"].train.images
    assert "none of which was trained on the 20 % of the training images held out" in report(found, tmp_path)


def test_interrupted_command_says_what_is_kept(image_sets: Path, interrupted: Callable[..., tuple[int, str]]) -> None:
    arguments = "reproduce", "--size", "tests", "--data", image_sets, "--out", "out"
    status, said = interrupted(*arguments, once="pretrain epoch 1")
    assert status == 130
    assert "interrupted: what was finished is in out; run the same command to go on" in said
    assert "Traceback" not in said


def test_finished_run_repeats_nothing(
    out: Path, image_sets: Path, size: Size, benchmark: Benchmark, results: Results, tmp_path: Path
) -> None:
    said: list[str] = []
    copy = shutil.copytree(out, tmp_path / "out")
    again = reproduction(copy, image_sets, size, benchmark, said.append).all()
    assert not [line for line in said if "training " in line or "measuring" in line or "choosing" in line]
    assert again == results.model_copy(update={"command": "again"})


def test_one_more_seed_adds_to_what_is_done(
    out: Path, image_sets: Path, size: Size, benchmark: Benchmark, results: Results, tmp_path: Path
) -> None:
    said: list[str] = []
    copy = shutil.copytree(out, tmp_path / "out")
    more, only = size.model_copy(update={"seeds": (*size.seeds, 7)}), Only(parts=frozenset({"softmax"}))
    again = reproduction(copy, image_sets, more, benchmark, said.append, only).all()
    assert [line for line in said if "measuring" in line] == ["cifar10, seed-7: measuring softmax"]
    assert set(results.rows) < set(again.rows)
    assert len(again.rows) == len(results.rows) + 2


def test_other_images_are_refused(
    out: Path, image_sets: Path, size: Size, benchmark: Benchmark, results: Results, tmp_path: Path
) -> None:
    copy = shutil.copytree(out, tmp_path / "out")
    swapped = benchmark.model_copy(update={"ood": benchmark.ood | {"svhn": benchmark.ood["textures"]}})
    with pytest.raises(ResumeError, match="svhn"):
        reproduction(copy, image_sets, size, swapped).all()
    assert read_results(copy / "results.json") == results


def test_another_recipe_is_refused_for_the_network_that_it_changes(
    out: Path, image_sets: Path, size: Size, benchmark: Benchmark, tmp_path: Path
) -> None:
    copy = shutil.copytree(out, tmp_path / "out")
    changed = size.finetunings["outlier_exposure"].model_copy(update={"finetune": {"learning_rate": 0.5}})
    other = size.model_copy(update={"finetunings": size.finetunings | {"outlier_exposure": changed}})
    reproduction(copy, image_sets, other, benchmark, only=Only(parts=frozenset({"softmax"}))).all()
    with pytest.raises(ResumeError, match=r"finetune\.learning_rate = 0\.01, now 0\.5"):
        reproduction(copy, image_sets, other, benchmark).all()


def test_scores_fitted_on_fewer_images_are_refused(
    out: Path, image_sets: Path, size: Size, benchmark: Benchmark, tmp_path: Path
) -> None:
    copy = shutil.copytree(out, tmp_path / "out")
    with pytest.raises(ResumeError, match="fit_images = 150, now 100"):
        reproduction(copy, image_sets, size.model_copy(update={"fit_images": 100}), benchmark).all()


def test_choices_of_one_network_state_no_error_for_each(results: Results) -> None:
    errors = {
        what: {candidate.error is None for candidate in choice.candidates.values()}
        for what, choice in results.choices["cifar10"].items()
    }
    assert errors.pop("margins") == {False}
    assert set(map(frozenset, errors.values())) == {frozenset({True})}


def test_another_size_is_refused(out: Path, image_sets: Path, size: Size, benchmark: Benchmark, tmp_path: Path) -> None:
    copy = shutil.copytree(out, tmp_path / "out")
    with pytest.raises(ResumeError, match="size = 'tests', now 'other'"):
        reproduction(copy, image_sets, size.model_copy(update={"name": "other"}), benchmark).all()


def test_sets_that_are_not_there_are_named_with_how_to_get_them(
    printed: tuple[Path, list[str], list[str]], results: Results, image_sets: Path
) -> None:
    said = "".join(printed[1])
    assert re.search(r"CIFAR-100 is left out: cifar100/train is not there\. .*d\.CIFAR100\(", said)
    assert f"celeba is left out: it is not there. Put {image_sets / 'celeba/test'}.npz there" in said
    record = results.in_distribution["cifar10"]
    assert set(record.missing) == {"places", "scenes-crop", "scenes-resize", "celeba", "cifar100"}


def test_in_distribution_set_that_is_asked_for_must_be_there(
    image_sets: Path, size: Size, benchmark: Benchmark, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"no set svhn/train or torchvision:SVHN:train in .*d\.SVHN\("):
        reproduction(tmp_path, image_sets, size, benchmark, only=read_only(["svhn"], size, benchmark)).all()
    assert not list(tmp_path.rglob("*"))


def test_test_images_whose_labels_mean_other_classes_are_refused(
    image_sets: Path, size: Size, benchmark: Benchmark, tmp_path: Path
) -> None:
    for path in image_sets.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "cifar10").unlink()
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10/train").symlink_to(image_sets / "cifar10/train")
    test = load_set("cifar10/test", image_sets, benchmark.preprocess, None)
    classes = np.array(test.classes[::-1])
    np.savez(tmp_path / "cifar10/test.npz", images=test.images, labels=9 - test.labels, classes=classes)
    with pytest.raises(DataError, match=r"cifar10/test has classes \('truck', .* cifar10/train has \('airplane',"):
        reproduction(tmp_path / "out", tmp_path, size, benchmark).all()


def test_folder_without_any_set_is_refused(size: Size, benchmark: Benchmark, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no set cifar10/train or torchvision:CIFAR10:train"):
        reproduction(tmp_path / "out", tmp_path, size, benchmark).all()


def test_images_that_were_trained_on_or_fitted_are_counted(
    image_sets: Path, size: Size, benchmark: Benchmark, tmp_path: Path
) -> None:
    data, said = shutil.copytree(image_sets, tmp_path / "data"), list[str]()
    train = load_set("cifar10/train", data, benchmark.preprocess, None).images
    with np.load(data / "outliers/train.npz") as outliers, np.load(data / "svhn/test.npz") as svhn:
        of_svhn = np.concatenate([svhn["images"], outliers["images"][:3]])
        of_outliers = np.concatenate([outliers["images"], train[:2]])
    np.savez(data / "svhn/test.npz", images=of_svhn)
    np.savez(data / "outliers/train.npz", images=of_outliers)
    with np.load(data / "textures/test.npz") as textures:
        np.savez(data / "textures/test.npz", images=textures["images"].repeat(2, axis=1).repeat(2, axis=2))
    only = Only(parts=frozenset())
    results = reproduction(tmp_path / "out", data, size, benchmark, said.append, only).all()
    assert "3 of the 43 images of svhn/test are training images or outliers too" in said
    assert f"2 of the {len(of_outliers)} images of outliers/train are training images too" in said
    assert "38 of the 38 images of textures/test had another size and were fitted" in said
    record = results.in_distribution["cifar10"]
    assert (record.outliers.in_training, record.ood["svhn"].in_training) == (2, 3)
    assert (record.outliers.fitted, record.ood["textures"].fitted) == (0, 38)
    assert results.rows == ()


def test_too_few_images_to_fit_scores_on_are_refused_before_any_training(
    image_sets: Path, size: Size, benchmark: Benchmark, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="knn has 20 training images for its reference rows; k = 50"):
        reproduction(tmp_path, image_sets, size.model_copy(update={"fit_images": 20}), benchmark).all()
    assert not list(tmp_path.rglob("*"))


def test_share_that_holds_too_few_images_out_is_refused_before_any_training(
    image_sets: Path, size: Size, benchmark: Benchmark, tmp_path: Path
) -> None:
    validation = size.validation.model_copy(update={"share": 0.005})
    with pytest.raises(DataError, match=r"share is 0\.005, which holds 1 of the 200 images of cifar10/train out; .* 2"):
        reproduction(tmp_path, image_sets, size.model_copy(update={"validation": validation}), benchmark).all()
    assert not list(tmp_path.rglob("*"))


def test_hardware_is_that_of_training_too(out: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(out, tmp_path / "out")
    path = copy / "networks/cifar10/seed-0/classifier/history.json"
    first, *others = json.loads(path.read_text())
    path.write_text(json.dumps([first | {"hardware": "Some GPU"}, *others]))
    results = read_results(copy / "results.json")
    assert write_results(copy, results.size, "again").hardware == f"{results.hardware}; Some GPU"


def test_only_report_figures_and_results_are_for_a_repository(out: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(out, tmp_path / "out")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    status = subprocess.run(
        ["git", "status", "--porcelain", "-uall"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    names = {line.split(" ", 1)[1].strip() for line in status.stdout.splitlines()}
    figures = {f"out/figures/{name}-cifar10.png" for name in ("histograms", "roc", "temperature", "margins")}
    assert names == {"out/results.json", "out/report.md", *figures}
    assert (copy / "networks").is_dir()


def test_figures_are_pictures(out: Path) -> None:
    for name in ("histograms", "roc", "temperature", "margins"):
        with Image.open(out / f"figures/{name}-cifar10.png") as picture:
            assert min(picture.size) > 400
            pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        assert len(np.unique(pixels @ [1 << 16, 1 << 8, 1])) > 100
        assert 0.5 < (pixels == 255).all(axis=1).mean() < 0.99


def test_report_holds_the_papers_figures_beside_ours(out: Path, results: Results) -> None:
    report = (out / "report.md").read_text()

    def mean(method: str, seed: int) -> float:
        return (row_of(results, method, seed, "svhn").fpr95 + row_of(results, method, seed, "textures").fpr95) / 2

    first, second = mean("energy", 0), mean("energy", 1)
    ours = f"{(first + second) / 2:.2f} ± {abs(first - second) / 2**0.5:.2f}"
    assert f"| energy score | {ours} | 33.01 |" in report
    for figure in (
        "51.04",
        "35.71",
        "37.08",
        "8.53",
        "3.32",
        "98.92",
        "99.75",
        "4.87",
        "48.49 / 35.59",
        "| 0.64 | 0.65 |",
    ):
        assert figure in report
    assert "![Fig. 4a: temperature](figures/temperature-cifar10.png)" in report
    assert "the paper takes all of DTD" in report
    assert "Not there, so left out: places" in report
    assert "nan" not in report.lower().split()


def test_report_command_renews_report_figures_and_a_document(ood_train: OodTrain, out: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(out, tmp_path / "out")
    expected = (copy / "report.md").read_text()
    (copy / "report.md").unlink()
    shutil.rmtree(copy / "figures")
    document = tmp_path / "page.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    finished = ood_train("report", copy, "--into", document)
    assert finished.returncode == 0, finished.stderr
    assert (copy / "report.md").read_text() == expected
    assert len(list((copy / "figures").iterdir())) == 4
    page = document.read_text()
    assert page.startswith(f"before\n{BEGIN}\n| method | FPR95 | paper |")
    assert page.endswith(f"{END}\nafter\n")
    assert "| energy fine-tuning | " in page
    assert "old" not in page.split()


def test_report_of_results_alone_keeps_the_figures_there_are(ood_train: OodTrain, out: Path, tmp_path: Path) -> None:
    """As in docs/results: results.json, the report and its figures, without scores."""
    (tmp_path / "figures").mkdir()
    shutil.copy(out / "results.json", tmp_path)
    shutil.copy(out / "figures/roc-cifar10.png", tmp_path / "figures")
    before = (tmp_path / "figures/roc-cifar10.png").read_bytes()
    finished = ood_train("report", tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "the figures of cifar10 are left as they are" in " ".join(finished.stderr.split())
    assert (tmp_path / "figures/roc-cifar10.png").read_bytes() == before
    report = (tmp_path / "report.md").read_text()
    assert "roc-cifar10.png" in report
    assert "temperature-cifar10.png" not in report


def test_report_without_results_is_refused(ood_train: OodTrain, tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", {"rows": []})
    finished = ood_train("report", tmp_path)
    assert finished.returncode == 1
    assert "is no results.json of ood-train reproduce" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_seed_of_a_row_is_its_training(results: Results) -> None:
    assert {row.seed for row in results.rows if row.method == "softmax"} == {0, 1}
    assert row_of(results, "softmax", 0, "svhn").auroc != row_of(results, "softmax", 1, "svhn").auroc
