"""The tables of the report, in the shape of the paper's, its own figures beside ours."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from model_store.score_specs import ScoreName
from training.report import table
from training.reproduce.methods import ONE_PASS_METHODS, margin_method, temperature_method
from training.reproduce.published import read_published
from training.reproduce.results import InDistributionRecord, Results, Row
from training.reproduce.size import FineTuning, Size
from training.stage_specs import FinetuneSpec

Metric = Literal["fpr95", "auroc", "aupr"]
METRICS: tuple[Metric, ...] = get_args(Metric)
NAMES = {"fpr95": "FPR95", "auroc": "AUROC", "aupr": "AUPR"}

PAPER_METHODS = {
    "softmax": "softmax score",
    "energy": "energy score",
    "odin": "ODIN",
    "mahalanobis": "Mahalanobis",
    "outlier_exposure": "Outlier Exposure",
    "energy_finetuned": "energy fine-tuning",
}
FURTHER_SCORES = {
    "max_logit": "max logit",
    "gen": "GEN",
    "react": "ReAct",
    "scale": "SCALE",
    "knn": "KNN",
    "mahalanobis_one_pass": "Mahalanobis, unperturbed",
    "relative_mahalanobis": "relative Mahalanobis",
    "vim": "ViM",
    "energy_mahalanobis": "energy + Mahalanobis",
    "chosen": "chosen on validation outliers",
}


@dataclass(frozen=True)
class Subject:
    """The rows of one in-distribution set, and what was asked for."""

    name: str
    record: InDistributionRecord
    size: Size
    rows: tuple[Row, ...]

    def has(self, method: str) -> bool:
        """Return whether a method was measured."""
        return any(row.method == method for row in self.rows)

    def values(self, method: str, sets: Iterable[str], metric: str) -> list[float]:
        """Return for each seed the mean of a figure over OOD sets."""
        by_seed: dict[int, list[float]] = {}
        wanted = set(sets)
        for row in self.rows:
            if row.method == method and row.ood_set in wanted:
                by_seed.setdefault(row.seed, []).append(getattr(row, metric))
        return [float(np.mean(values)) for values in by_seed.values()]

    def cell(self, method: str, sets: Iterable[str], metric: str) -> str:
        """Return mean and standard deviation over seeds of the mean over OOD sets, as tables show it."""
        return mean_and_sd(self.values(method, sets, metric))

    @property
    def far(self) -> tuple[str, ...]:
        """The far OOD sets."""
        return tuple(self.record.far_ood)

    @property
    def near(self) -> tuple[str, ...]:
        """The near OOD sets."""
        return tuple(self.record.near_ood)

    @property
    def titles(self) -> dict[str, str]:
        """Every method of Table 2, and past it, that was measured, by what tables call it."""
        tuned = {name: spec.title for name, spec in self.size.finetunings.items()}
        titles = PAPER_METHODS | FURTHER_SCORES | {name: tuned[name] for name in tuned if name not in PAPER_METHODS}
        return {name: title for name, title in titles.items() if self.has(name)}


def table1(subject: Subject) -> str:
    """Return Table 1 (of SVHN Table 6): softmax against energy, OOD set by OOD set, before and after fine-tuning."""
    header = ["fine-tuned", "OOD set", *(f"{NAMES[metric]}{whose}" for metric in METRICS for whose in ("", ", paper"))]
    rows = []
    for tuned, pair in (("no", ("softmax", "energy")), ("yes", ("outlier_exposure", "energy_finetuned"))):
        if not all(map(subject.has, pair)):
            continue
        labels = {name: name for name in subject.far} | {None: "**average**"}
        for name, label in (labels | {name: f"{name} (near)" for name in subject.near}).items():
            cells, sets = [], (name,) if name else subject.far
            for metric in METRICS:
                cells.append(" / ".join(subject.cell(method, sets, metric) for method in pair))
                cells.append(" / ".join(_published(subject, method, name, metric) for method in pair))
            rows.append([tuned, label, *cells])
    legend = "Softmax / energy; fine-tuned: Outlier Exposure with the softmax score / energy fine-tuning."
    return f"{legend}\n\n{table(header, rows)}" if rows else ""


def table2(subject: Subject) -> str:
    """Return Table 2: every method's means over the far sets and its test error, and the near sets beside them."""
    header = ["method", "FPR95", "paper", "AUROC", "paper", "AUPR", "paper", "error", "paper"]
    near = subject.near
    header += ["near FPR95", "near AUROC"] * bool(near)
    rows = []
    for method, title in subject.titles.items():
        cells = [title]
        for metric in METRICS:
            cells += [subject.cell(method, subject.far, metric), _published(subject, method, None, metric)]
        printed = read_published().method(subject.name, method)
        cells += [subject.cell(method, subject.far, "test_error"), _number(printed.test_error if printed else None)]
        cells += [subject.cell(method, near, metric) for metric in ("fpr95", "auroc") if near]
        rows.append(cells)
    return table(header, rows)


def fine_tunings(subject: Subject, results: Results) -> str:
    """Return how each network was fine-tuned, as its folder has it, and the score that judges it."""
    rows = []
    for name, given in results.fine_tunings.get(subject.name, {}).items():
        if name in subject.size.finetunings:
            rows.append(_fine_tuning(subject.size.finetunings[name], FinetuneSpec.model_validate(given)))
    header = ["fine-tuning", "objective", "margins", "epochs", "batches", "learning rate", "outliers", "judged by"]
    return table(header, rows) if rows else ""


def _fine_tuning(asked: FineTuning, spec: FinetuneSpec) -> list[str]:
    objective = spec.objective.model_dump(exclude_none=True)
    margins = ", ".join(f"{objective.pop(key):g}" for key in ("margin_in", "margin_out") if key in objective)
    kind = objective.pop("kind")
    mined = f", {spec.mining.clusters} mined of each batch" if spec.mining else ""
    return [
        asked.title,
        f"{kind} ({', '.join(f'{key} {value:g}' for key, value in objective.items())})",
        f"{margins} ({asked.margins})" if margins and asked.margins else margins,
        str(spec.epochs),
        f"{spec.batch_size} + {spec.outlier_batch_size}",
        f"{spec.learning_rate:g}",
        f"{asked.outliers or 'real'}{mined}",
        asked.score,
    ]


def table3(subject: Subject) -> str:
    """Return Table 3: AUROC on SVHN, CIFAR-100 and CelebA; the generative models as the paper quotes them."""
    sets = ("svhn", "cifar100", "celeba")
    there = [name for name in sets if name in subject.record.ood]
    if subject.name != "cifar10" or not there:
        return ""
    rows = []
    for model, printed in read_published().table3.items():
        ours = [_hundredth(subject.values(model, (name,), "auroc")) for name in sets]
        rows.append([PAPER_METHODS.get(model, model), *ours, *(f"{printed[name]:.2f}" for name in sets)])
    return table(["method", *sets, *(f"{name}, paper" for name in sets)], rows)


def by_set(subject: Subject) -> str:
    """Return FPR95 of every method on every OOD set: mean and sd over seeds, of one seed its 95 % interval."""
    names = [*subject.far, *subject.near]
    rows = []
    for method, title in subject.titles.items():
        found = {name: [row for row in subject.rows if row.method == method and row.ood_set == name] for name in names}
        rows.append([title, *(_with_interval(of_set) for of_set in found.values())])
    return table(["FPR95, %", *_set_names(subject)], rows)


def scores_of_networks(subject: Subject) -> str:
    """Return FPR95, far / near, of every one-pass score of every network."""
    networks = {name: spec.title for name, spec in subject.size.finetunings.items() if subject.has(name)}
    of_classifier = {score: method for method, score in ONE_PASS_METHODS.items()}
    rows = []
    for score in get_args(ScoreName):
        named = [of_classifier[score]]
        for network in networks:
            judged_by = subject.size.finetunings[network].score == score
            named.append(network if judged_by else f"{network}+{score}")
        cells = [_far_and_near(subject, method) for method in named]
        if any(map(subject.has, named)):
            rows.append([score, *cells])
    return table(["FPR95, far / near", "classifier", *networks.values()], rows) if networks and rows else ""


def temperatures(subject: Subject) -> str:
    """Return FPR95 of the classifier's negative energy by temperature: Fig. 4a in figures."""
    values = [t for t in subject.size.temperature.temperatures if subject.has(temperature_method(t))]
    rows = [[f"{t:g}", *_mean_and_sets(subject, temperature_method(t))] for t in values]
    return table(["T", "**mean**", *_set_names(subject)], rows) if rows else ""


def margins(subject: Subject) -> str:
    """Return mean FPR95 after energy fine-tuning of the validation network by margins: Fig. 4b in figures."""
    methods = [(pair, margin_method(pair)) for pair in subject.size.margins.pairs()]
    rows = [
        [
            f"{pair.margin_in:g}",
            f"{pair.margin_out:g}",
            *_mean_and_sets(subject, name),
            subject.cell(name, subject.far, "test_error"),
        ]
        for pair, name in methods
        if subject.has(name)
    ]
    return table(["m_in", "m_out", "**mean**", *_set_names(subject), "error"], rows) if rows else ""


def choices(subject: Subject, results: Results) -> str:
    """Return what validation outliers chose, and among how much."""
    rows = []
    for what, choice in results.choices.get(subject.name, {}).items():
        fpr95 = {name: candidate.fpr95 for name, candidate in choice.candidates.items()}
        rows.append(
            [
                what,
                choice.chosen,
                f"{fpr95[choice.chosen]:.2f}",
                f"{min(fpr95.values()):.2f} to {max(fpr95.values()):.2f}",
            ]
        )
    return table(["choice of", "chosen", "its FPR95 on validation outliers", "all candidates'"], rows) if rows else ""


def data(subject: Subject) -> str:
    """Return the sets as they were, and in what they differ from the paper's."""
    record = subject.record
    roles = {"train": record.train, "test": record.test, "outliers": record.outliers}
    roles |= {f"far OOD {name}": found for name, found in record.far_ood.items()}
    roles |= {f"near OOD {name}": found for name, found in record.near_ood.items()}
    rows = [
        [
            role,
            f"`{found.source}`",
            f"{found.images:,}",
            str(found.in_training or "none"),
            found.paper or "none",
            found.differs,
        ]
        for role, found in roles.items()
    ]
    missing = f"\n\nNot there, so left out: {', '.join(record.missing)}." if record.missing else ""
    return table(["role", "set", "images", "of them trained on", "in the paper", "what differs"], rows) + missing


def mean_and_sd(values: Sequence[float]) -> str:
    """Return "mean ± sd" over seeds, without the sd where there is one seed; empty where there are none."""
    if not values:
        return ""
    mean = f"{np.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.2f}"


def _published(subject: Subject, method: str, ood_set: str | None, metric: Metric) -> str:
    """Return the paper's figure for one set; None: its printed mean over its own far sets."""
    printed = read_published().method(subject.name, method)
    if printed is None:
        return ""
    if ood_set is None:
        return f"{printed.mean[METRICS.index(metric)]:.2f}"
    key = subject.record.ood[ood_set].published
    return f"{printed.ood[key][METRICS.index(metric)]:.2f}" if key in printed.ood else "none"


def _far_and_near(subject: Subject, method: str) -> str:
    return " / ".join(filter(None, (subject.cell(method, sets, "fpr95") for sets in (subject.far, subject.near))))


def _mean_and_sets(subject: Subject, method: str) -> list[str]:
    """Return FPR95 as the mean of the far sets, of each of them, and of each near one."""
    each = ((name,) for name in (*subject.far, *subject.near))
    return [subject.cell(method, sets, "fpr95") for sets in (subject.far, *each)]


def _set_names(subject: Subject) -> list[str]:
    return [*subject.far, *(f"{name} (near)" for name in subject.near)]


def _with_interval(rows: Sequence[Row]) -> str:
    figure = mean_and_sd([row.fpr95 for row in rows])
    return f"{figure} [{rows[0].ci95.fpr95[0]:.1f}, {rows[0].ci95.fpr95[1]:.1f}]" if len(rows) == 1 else figure


def _hundredth(percent: Sequence[float]) -> str:
    return f"{np.mean(percent) / 100:.2f}" if percent else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
