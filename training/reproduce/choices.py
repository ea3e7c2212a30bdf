"""What is chosen on validation outliers: ODIN's and Mahalanobis' hyperparameters, one-pass scores, margins.

Made of training images alone: a lab whose training holds images out, and those images. No test set comes in here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from model_store.frozen import Frozen
from model_store.networks import NetworkOutput
from model_store.score_specs import ScoreName
from model_store.scores import Mahalanobis, OnePassScore, negative_energy
from training.datasets import ImageSet
from training.objective_spec import Margins
from training.perturbed_scores import odin, perturbed_mahalanobis
from training.reproduce.methods import margin_method
from training.reproduce.networks import FinetunePlan, Lab, TrainedNetwork
from training.run_folder import open_stage, write_json
from training.selection import Choice, ValidationScores, choose
from training.validation_outliers import validation_outliers

CHOICE = "choice.json"
Value = TypeVar("Value")


class OdinSpec(Frozen):
    """ODIN and its hyperparameters; epsilon in the pixel range [0, 1]."""

    kind: Literal["odin"] = "odin"
    temperature: float
    epsilon: float


class PerturbedMahalanobisSpec(Frozen):
    """Mahalanobis of an input that was perturbed by epsilon, in the pixel range [0, 1]."""

    kind: Literal["perturbed_mahalanobis"] = "perturbed_mahalanobis"
    epsilon: float


@dataclass(frozen=True)
class Validation:
    """Images that the lab does not train on, and the lab: all that choices are made of. Each is made once."""

    lab: Lab
    held_out: ImageSet
    folder: Path

    def odin(self) -> OdinSpec:
        """Choose ODIN's temperature and epsilon."""
        grid = self.lab.setting.size.odin
        values = {
            f"T={t:g} eps={e:g}": OdinSpec(temperature=t, epsilon=e) for t in grid.temperatures for e in grid.epsilons
        }

        def candidates() -> dict[str, ValidationScores]:
            network = self.lab.classifier()
            scores: dict[str, ValidationScores] = {}
            for temperature in grid.temperatures:
                by_set = {
                    name: odin(network.normalised, images, temperature=temperature, epsilons=grid.epsilons)
                    for name, images in self._images.items()
                }
                scores |= _by_epsilon(f"T={temperature:g} ", grid.epsilons, by_set)
            return scores

        return self._chosen("odin", values, grid.model_dump(), candidates)

    def mahalanobis(self) -> PerturbedMahalanobisSpec:
        """Choose the perturbation of Mahalanobis."""
        grid = self.lab.setting.size.mahalanobis
        values = {f"eps={e:g}": PerturbedMahalanobisSpec(epsilon=e) for e in grid.epsilons}

        def candidates() -> dict[str, ValidationScores]:
            network = self.lab.classifier()
            fitted = fitted_mahalanobis(self.lab, network)
            by_set = {
                name: perturbed_mahalanobis(network.normalised, images, fitted, epsilons=grid.epsilons)
                for name, images in self._images.items()
            }
            return _by_epsilon("", grid.epsilons, by_set)

        return self._chosen("mahalanobis", values, grid.model_dump(), candidates)

    def score(self, name: str, plan: FinetunePlan | None) -> ScoreName:
        """Choose the one-pass score of the classifier, or with a plan of the network fine-tuned so and called `name`.

        A fine-tuned network's is chosen on the validation network, fine-tuned in the same way.
        """
        values: dict[str, ScoreName] = {score: score for score in get_args(ScoreName)}

        def candidates() -> dict[str, ValidationScores]:
            network = self.lab.classifier() if plan is None else self.lab.fine_tuned(name, plan)
            outputs = {name: network.output(images) for name, images in self._images.items()}
            fitted = {score: network.fitted(self.lab.setting.score_spec(score)) for score in values.values()}
            return {score: _validation_scores(outputs, scorer) for score, scorer in fitted.items()}

        specs = {score: self.lab.setting.score_spec(score).model_dump() for score in values.values()}
        inputs = {"finetune": plan and _dumped(plan), "scores": specs}
        return self._chosen(f"score-{name}", values, inputs, candidates)

    def margins(self) -> Margins:
        """Choose the margins of energy fine-tuning, as the paper does; one pair alone needs no training."""
        size = self.lab.setting.size
        values = {margin_method(pair): pair for pair in size.margins.pairs()}
        if len(values) == 1:
            return next(iter(values.values()))

        plans = {name: FinetunePlan(size.margin_trial(pair)) for name, pair in values.items()}

        def candidates() -> dict[str, ValidationScores]:
            return {name: self._fine_tuned_scores(name, plan) for name, plan in plans.items()}

        inputs = {name: _dumped(plan) for name, plan in plans.items()}
        return self._chosen("margins", values, inputs, candidates)

    def _fine_tuned_scores(self, name: str, plan: FinetunePlan) -> ValidationScores:
        network = self.lab.fine_tuned(name, plan)
        outputs = {name: network.output(images) for name, images in self._images.items()}
        error = outputs["held-out"].logits.argmax(dim=1).numpy() != self._shown.labels
        scores = _validation_scores(outputs, lambda output: negative_energy(output.logits))
        return ValidationScores(scores.in_distribution, scores.outliers, float(error.mean()))

    @cached_property
    def _shown(self) -> ImageSet:
        order = np.random.default_rng(self.lab.seed).permutation(len(self.held_out))
        return self.held_out.subset(order[: self.lab.setting.size.validation.images])

    @cached_property
    def _images(self) -> dict[str, NDArray[np.uint8]]:
        """The images that stand for in-distribution, as `held-out`, and the validation outliers made of them."""
        images = self._shown.images
        return {"held-out": images} | validation_outliers(images, self.lab.seed)

    def _chosen(
        self,
        name: str,
        values: Mapping[str, Value],
        inputs: Mapping[str, object],
        candidates: Callable[[], Mapping[str, ValidationScores]],
    ) -> Value:
        size, folder = self.lab.setting.size, self.folder / name
        made_from = {
            "validation": size.validation.model_dump(),
            "network": size.network.model_dump(),
            "augment": size.augment and size.augment.model_dump(),
            "execution": size.execution.model_dump(),
            "pretrain": size.pretrain.model_dump(),
            "fit_images": size.fit_images,
            "train": {"sha256": self.lab.train.fingerprint, "images": len(self.lab.train)},
            "outliers": self.lab.outliers.fingerprint,
            "candidates": inputs,
        }
        open_stage(folder, made_from)
        if not (folder / CHOICE).exists():
            self.lab.say(f"{self.lab.setting.name}: choosing {name} on validation outliers")
            write_json(folder / CHOICE, choose(candidates()).model_dump())
        return values[Choice.model_validate_json((folder / CHOICE).read_text()).chosen]


def fitted_mahalanobis(lab: Lab, network: TrainedNetwork) -> Mahalanobis:
    """Return the one-pass Mahalanobis score of a network, which perturbation then raises."""
    fitted = network.fitted(lab.setting.score_spec("mahalanobis"))
    if not isinstance(fitted, Mahalanobis):
        raise TypeError(f"the score mahalanobis is fitted as {type(fitted).__name__}")
    return fitted


def _dumped(plan: FinetunePlan) -> dict[str, object]:
    return {"spec": plan.spec.model_dump(exclude_none=True), "synthetic": plan.synthetic}


def _by_epsilon(
    prefix: str, epsilons: tuple[float, ...], by_set: Mapping[str, NDArray[np.float32]]
) -> dict[str, ValidationScores]:
    return {
        f"{prefix}eps={epsilon:g}": _split({name: scores[row] for name, scores in by_set.items()})
        for row, epsilon in enumerate(epsilons)
    }


def _validation_scores(
    outputs: Mapping[str, NetworkOutput], score: OnePassScore | Callable[[NetworkOutput], object]
) -> ValidationScores:
    return _split({name: np.asarray(score(output)) for name, output in outputs.items()})


def _split(by_set: Mapping[str, NDArray[np.float32]]) -> ValidationScores:
    outliers = {name: scores for name, scores in by_set.items() if name != "held-out"}
    return ValidationScores(by_set["held-out"], outliers)
