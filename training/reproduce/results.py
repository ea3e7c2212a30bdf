"""Scores and figures as they are kept: a folder a method, and `results.json`, put together from all of them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.numpy import load_file, save

from model_store.frozen import Frozen, Percent
from training.bootstrap import bootstrap_intervals
from training.errors import ResumeError
from training.evaluate import OOD_IMAGES
from training.hardware import together
from training.metrics import resampled_metrics
from training.reproduce.choices import CHOICE
from training.reproduce.methods import slug
from training.reproduce.size import Size
from training.run_folder import INPUTS, write_bytes, write_json
from training.selection import Choice

RESULTS, ROWS, SCORES, SETS, CHOICES, NETWORKS = "results.json", "rows.json", "scores", "sets", "choices", "networks"
SCORES_FILE, RECORD = "scores.safetensors", "record.json"
TEST, CORRECT, OOD = "test", "correct", "ood."

Range = tuple[Percent, Percent]


class Intervals(Frozen):
    """95 % bootstrap intervals, in percent: other images of the same sources, the same network."""

    fpr95: Range
    auroc: Range
    aupr: Range


class Row(Frozen):
    """One method on one OOD set, in percent; in-distribution positive, except where a name says otherwise.

    n_in, n_ood: the images there are. Of more than 2,000 OOD images, figures are means over draws of 2,000.
    """

    in_distribution: str
    network: str
    method: str
    seed: int
    ood_set: str
    n_in: int
    n_ood: int
    fpr95: Percent
    auroc: Percent
    aupr: Percent
    fpr95_ood_positive: Percent
    aupr_ood_positive: Percent
    test_error: Percent
    ci95: Intervals


class Origin(Frozen):
    """What every row of one method has in common, and how it was measured."""

    in_distribution: str
    network: str
    method: str
    seed: int
    draws: int
    resamples: int


class MethodResult(Frozen):
    """One method's rows, the code and hardware that made them, and how long scoring took."""

    commit: str
    hardware: str
    seconds: float
    rows: tuple[Row, ...]


class SetRecord(Frozen):
    """An image set as it was found."""

    source: str
    images: int
    encoding: str
    sha256: str
    paper: str | None
    """What the paper has in its place."""
    published: str | None
    """What `published.toml` calls that."""
    differs: str
    fitted: int = 0
    """So many of its images had another size."""
    in_training: int = 0
    """So many of its images are, pixel for pixel, training images or outliers."""


class InDistributionRecord(Frozen):
    """The sets of one in-distribution set, by role; the OOD sets that were not there by how to get them."""

    title: str
    train: SetRecord
    test: SetRecord
    outliers: SetRecord
    far_ood: dict[str, SetRecord]
    near_ood: dict[str, SetRecord]
    missing: dict[str, str]

    @property
    def ood(self) -> dict[str, SetRecord]:
        """All OOD sets."""
        return self.far_ood | self.near_ood


class Results(Frozen):
    """`results.json`, whole."""

    commit: str
    command: str
    hardware: str
    """What scored, and what trained where that is another."""
    seconds: float
    """Of training and scoring together, resumed or not."""
    size: Size
    in_distribution: dict[str, InDistributionRecord]
    choices: dict[str, dict[str, Choice]]
    """What validation outliers chose, by in-distribution set and what was chosen."""
    fine_tunings: dict[str, dict[str, dict[str, Any]]]
    """Tables `finetune` as networks were trained with, chosen margins in them, by in-distribution set and network."""
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class MethodScores:
    """One method's scores float32 of the test images and of each OOD set; correct bool (N,): was the class right."""

    test: NDArray[np.float32]
    correct: NDArray[np.bool_]
    ood: Mapping[str, NDArray[np.float32]]


def rows(origin: Origin, scores: MethodScores) -> Iterator[Row]:
    """Yield the figures of every OOD set, in the paper's protocol, with bootstrap intervals of all its images."""
    common = origin.model_dump(include={"in_distribution", "network", "method", "seed"})
    error = _percent(float(1 - scores.correct.mean()))
    for name, ood in scores.ood.items():
        metrics = resampled_metrics(
            in_distribution=scores.test,
            out_of_distribution=ood,
            sample_size=OOD_IMAGES,
            draws=origin.draws,
            seed=origin.seed,
        )
        intervals = bootstrap_intervals(
            in_distribution=scores.test,
            out_of_distribution=ood,
            sample_size=OOD_IMAGES,
            resamples=origin.resamples,
            seed=origin.seed,
        )
        fpr95, auroc, aupr, fpr95_ood_positive, aupr_ood_positive = map(_percent, astuple(metrics))
        low_high = [(_percent(low), _percent(high)) for low, high in astuple(intervals)]
        yield Row(
            **common,
            ood_set=name,
            n_in=len(scores.test),
            n_ood=len(ood),
            fpr95=fpr95,
            auroc=auroc,
            aupr=aupr,
            fpr95_ood_positive=fpr95_ood_positive,
            aupr_ood_positive=aupr_ood_positive,
            test_error=error,
            ci95=Intervals(fpr95=low_high[0], auroc=low_high[1], aupr=low_high[2]),
        )


def write_scores(folder: Path, scores: MethodScores) -> None:
    """Write per-image scores, whole or not at all."""
    ood = {f"{OOD}{name}": values for name, values in scores.ood.items()}
    write_bytes(folder / SCORES_FILE, save({TEST: scores.test, CORRECT: scores.correct} | ood))


def read_scores(folder: Path) -> MethodScores:
    """Read per-image scores.

    Raises:
        FileNotFoundError: they are not there.
    """
    tensors = load_file(folder / SCORES_FILE)
    ood = {name.removeprefix(OOD): values for name, values in tensors.items() if name.startswith(OOD)}
    return MethodScores(tensors[TEST], tensors[CORRECT], ood)


def recomputed_rows(folder: Path) -> tuple[Row, ...]:
    """Compute a method's rows anew from the scores that its folder keeps: the same that results.json has."""
    origin = Origin.model_validate(json.loads((folder / INPUTS).read_text())["origin"])
    scores = read_scores(folder)
    by_name = {row.ood_set: row for row in rows(origin, scores)}
    kept = MethodResult.model_validate_json((folder / ROWS).read_text())
    return tuple(by_name[row.ood_set] for row in kept.rows)


def method_folder(out: Path, in_distribution: str, run: str, method: str) -> Path:
    """Return where one method's scores and rows are; `run` is `seed-0`, or `validation`."""
    return out / SCORES / in_distribution / run / slug(method)


def write_results(out: Path, size: Size, command: str) -> Results:
    """Put `results.json` together from every method that is done, and write it whole, one line a row."""
    done = [_rows_of(path, path.stat().st_mtime_ns) for path in sorted((out / SCORES).rglob(ROWS))]
    trained = _epochs(out / NETWORKS)
    results = Results(
        commit=", ".join(dict.fromkeys(result.commit for result in done)),
        command=command,
        hardware=together([*(result.hardware for result in done), *(epoch.get("hardware") for epoch in trained)]),
        seconds=round(sum(result.seconds for result in done) + sum(epoch["seconds"] for epoch in trained), 1),
        size=size,
        in_distribution={
            path.parent.name: InDistributionRecord.model_validate_json(path.read_text())
            for path in sorted((out / SETS).glob(f"*/{RECORD}"))
        },
        choices=_choices(out / CHOICES),
        fine_tunings=_fine_tunings(out / NETWORKS),
        rows=tuple(row for result in done for row in result.rows),
    )
    write_text(out / RESULTS, _json(results))
    return results


def read_results(path: Path) -> Results:
    """Read `results.json`.

    Raises:
        ResumeError: it is not there, or is no such file.
    """
    try:
        return Results.model_validate_json(path.read_text())
    except (OSError, UnicodeDecodeError, ValidationError) as err:
        raise ResumeError(f"{path} is no results.json of ood-train reproduce: {err}") from err


def write_rows(folder: Path, result: MethodResult) -> None:
    """Write a method's rows; that they are there means it is done."""
    write_json(folder / ROWS, result.model_dump())


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all."""
    write_bytes(path, text.encode())


@cache
def _rows_of(path: Path, changed_ns: int) -> MethodResult:  # noqa: ARG001
    """Read a method's rows, once for as long as they are not changed: all are wanted again after every method."""
    return MethodResult.model_validate_json(path.read_text())


def _choices(folder: Path) -> dict[str, dict[str, Choice]]:
    found: dict[str, dict[str, Choice]] = {}
    for path in sorted(folder.glob(f"*/*/{CHOICE}")):
        choice = Choice.model_validate_json(path.read_text())
        found.setdefault(path.parents[1].name, {})[path.parent.name] = choice
    return found


def _fine_tunings(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(folder.glob(f"*/seed-*/*/{INPUTS}")):
        inputs = json.loads(path.read_text())
        if "finetune" in inputs:
            found.setdefault(path.parents[2].name, {})[path.parent.name] = inputs["finetune"]
    return found


def _epochs(folder: Path) -> list[dict[str, Any]]:
    return [epoch for path in sorted(folder.rglob("history.json")) for epoch in json.loads(path.read_text())]


def _json(results: Results) -> str:
    """Return JSON with one line a row: a thousand rows stay readable, and a diff shows which changed."""
    head = json.dumps(results.model_dump(exclude={"rows"}), indent=2).removesuffix("\n}")
    lines = ",\n    ".join(json.dumps(row.model_dump()) for row in results.rows)
    return f'{head},\n  "rows": [\n    {lines}\n  ]\n}}\n' if results.rows else f'{head},\n  "rows": []\n}}\n'


def _percent(fraction: float) -> float:
    return round(100 * fraction, 4)
