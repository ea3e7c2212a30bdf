"""Every method of the experiments, by name: which network, which score, and which experiment it belongs to."""

import fnmatch
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from model_store.score_specs import NegativeEnergySpec, ScoreName
from training.errors import RecipeError
from training.objective_spec import Margins
from training.reproduce.benchmark import Benchmark
from training.reproduce.size import Size

CLASSIFIER = "classifier"
"""The network before any fine-tuning."""

ONE_PASS_METHODS: dict[str, ScoreName] = {
    "softmax": "max_softmax",
    "energy": "negative_energy",
    "max_logit": "max_logit",
    "gen": "gen",
    "react": "react",
    "scale": "scale",
    "knn": "knn",
    "mahalanobis_one_pass": "mahalanobis",
    "relative_mahalanobis": "relative_mahalanobis",
    "vim": "vim",
    "energy_mahalanobis": "energy_mahalanobis",
}
"""The scores of the classifier by the names they have as methods; `mahalanobis` is the paper's, which perturbs."""

Experiment = Literal["table", "scores", "temperature", "margins"]
"""`table`: Tables 1, 2, 3 and 6, and the methods past them; `scores`: the other scores of fine-tuned networks;
`temperature`: Fig. 4a; `margins`: Fig. 4b."""

MethodScore = ScoreName | Literal["odin", "perturbed_mahalanobis", "chosen"] | NegativeEnergySpec
"""A score with the hyperparameters of its experiment or its own; `chosen`: the one-pass score that validation chose."""


_CLASSIFIERS: dict[str, MethodScore] = {
    **ONE_PASS_METHODS,
    "odin": "odin",
    "mahalanobis": "perturbed_mahalanobis",
    "chosen": "chosen",
}


@dataclass(frozen=True)
class Method:
    """One row of tables: a score of a network. `margins` are those of a network of Fig. 4b, on the validation split."""

    name: str
    experiment: Experiment
    network: str
    score: MethodScore
    margins: Margins | None = None


def methods(size: Size) -> tuple[Method, ...]:
    """Return every method, those of one network one after the other."""
    return (
        *(Method(name, "table", CLASSIFIER, score) for name, score in _CLASSIFIERS.items()),
        *_temperatures(size),
        *(method for name in size.finetunings for method in _fine_tuned(name, size)),
        *(
            Method(margin_method(pair), "margins", margin_method(pair), "negative_energy", pair)
            for pair in size.margins.pairs()
        ),
    )


def temperature_method(temperature: float) -> str:
    """Return the method's name for one point of Fig. 4a."""
    return f"energy T={temperature:g}"


def margin_method(margins: Margins) -> str:
    """Return the method's name for one point of Fig. 4b."""
    return f"energy_bounded m_in={margins.margin_in:g} m_out={margins.margin_out:g}"


def slug(name: str) -> str:
    """Return a name as that of a folder."""
    return name.replace("=", "").replace(" ", "_")


def _temperatures(size: Size) -> Iterable[Method]:
    for temperature in size.temperature.temperatures:
        yield Method(
            temperature_method(temperature), "temperature", CLASSIFIER, NegativeEnergySpec(temperature=temperature)
        )


def _fine_tuned(name: str, size: Size) -> Iterable[Method]:
    judged_by = size.finetunings[name].score
    yield Method(name, "table", name, judged_by)
    for score in get_args(ScoreName):
        if score != judged_by:
            yield Method(f"{name}+{score}", "scores", name, score)


def _require_new(finetunings: Iterable[str], taken: Collection[str]) -> None:
    if used := [name for name in finetunings if name in taken]:
        raise RecipeError(
            f"finetunings are called {', '.join(used)}, which names a method, an experiment or an in-distribution set "
            f"already; call them otherwise than {', '.join(sorted(taken))}"
        )


@dataclass(frozen=True)
class Only:
    """What of all was asked for; None where nothing was named."""

    in_distribution: frozenset[str] | None = None
    parts: frozenset[str] | None = None
    """Names of experiments and methods."""

    def wants(self, method: Method) -> bool:
        """Return whether a method was asked for by its own name or its experiment's."""
        return self.parts is None or not self.parts.isdisjoint({method.name, method.experiment})


def read_only(asked: Collection[str], size: Size, benchmark: Benchmark) -> Only:
    """Read names, or shell patterns (`ours+*`), of in-distribution sets, experiments and methods.

    Raises:
        RecipeError: one that none of them matches, or a fine-tuning that is called as something else is.
    """
    sets, parts = set(benchmark.in_distribution), {part for m in methods(size) for part in (m.experiment, m.name)}
    _require_new(size.finetunings, {CLASSIFIER, *_CLASSIFIERS, *get_args(Experiment), *sets})
    if unknown := [name for name in asked if not fnmatch.filter(sets | parts, name)]:
        named = [name for name in sorted(parts) if "=" not in name and "+" not in name]
        raise RecipeError(
            f"--only names {', '.join(unknown)}; there are the in-distribution sets "
            f"{', '.join(benchmark.in_distribution)} and the experiments and methods {', '.join(named)}"
        )
    return Only(_matched(sets, asked) or None, _matched(parts, asked) or None)


def _matched(names: set[str], patterns: Collection[str]) -> frozenset[str]:
    return frozenset(name for pattern in patterns for name in fnmatch.filter(names, pattern))
