"""A published float32 bundle in a lower precision: what that costs and gains, with thresholds of its own."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from model_store import calibration, images
from model_store.bundle import QUANTISED, Bundle, BundleDraft, load_bundle, read_network
from model_store.errors import BundleNotFoundError
from model_store.evaluation import Evaluation
from model_store.manifest import SCHEMA_VERSION, Execution, Manifest, QuantisedGraph
from model_store.optimisation import Optimisation
from model_store.predictor import Predictor, Scorer
from model_store.runtimes import OpenVinoIr, RunnableNetwork, Runtime, RuntimeOptions, run_accepted
from model_store.score_specs import ScoreName
from model_store.store import BundleRef, Store
from training import report
from training.bundle_size import require_draft_small_enough
from training.calibrate import Calibrated, as_sent, calibrate
from training.comparison import Comparison, Measured, compare
from training.config import Recipe, fault
from training.datasets import ImageSet
from training.errors import DataError, OptimisationError, RecipeError
from training.evaluate import NetworkScores, Say, evaluate, score_sets
from training.publish import golden_images
from training.quantise import quantisation_sample, quantise
from training.run_folder import write_json
from training.run_sets import RunSets

OptimisedRuntime = Literal["openvino", "torch-eager", "torch-compiled", "torch-graphs"]
LowPrecision = Literal["bfloat16", "int8"]
ALLOWED_FLIPS = 0.005
"""The share of verdicts that may change without anyone having said so."""
BFLOAT16_TOLERANCE = 3.0
"""How far a golden score may stray, in the greatest difference from float32 that golden images show. Two ways of
rounding to bfloat16, PyTorch's and OpenVINO's say, differ by about as much as each does from float32."""
INT8_TOLERANCE = 1e-2
"""The same in the range of the calibration scores. Roundings are in the graph, so that processors differ by less than
int8 does from float32: one without VNNI moved energies of 40 to 52 by 0.1 at most."""


@dataclass(frozen=True)
class Target:
    """What a bundle is to run on, in which precision."""

    runtime: OptimisedRuntime
    precision: LowPrecision

    def __post_init__(self) -> None:
        """Refuse what no runtime does.

        Raises:
            OptimisationError: int8 on PyTorch.
        """
        if self.precision == "int8" and self.runtime != "openvino":
            raise OptimisationError(
                f"precision int8 runs on openvino alone, not on {self.runtime}; bfloat16 runs on both"
            )


def find_source(name: str, stores: tuple[Store, ...], device: torch.device) -> Bundle:
    """Return the float32 bundle of that name, from the first store that has it, run by eager PyTorch.

    Raises:
        BundleError: no store has it, or it is damaged.
        OptimisationError: it is in a lower precision already.
    """
    ref = BundleRef.parse(name)
    for store in stores:
        if any(found.name == ref.name and ref.version in (None, found.version) for found in store.refs()):
            source = load_bundle(store.resolve(ref), runtime="torch-eager", device=device)
            break
    else:
        raise BundleNotFoundError(f"no bundle {name} in {', '.join(str(store.root) for store in stores)}")
    manifest = source.manifest
    if manifest.execution.precision != "float32":
        made_of = f", made of {manifest.optimisation.source}: name that" if manifest.optimisation else ""
        raise OptimisationError(
            f"{manifest.name}@{manifest.version} is in {manifest.execution.precision} already{made_of}; only a float32 "
            "bundle can be optimised"
        )
    return source


def recipe_of(source: Bundle) -> Recipe:
    """Return the recipe that a bundle was made by, which its manifest holds.

    Raises:
        RecipeError: it holds none that is one here.
    """
    try:
        return Recipe.model_validate(source.manifest.provenance.recipe)
    except ValidationError as err:
        raise RecipeError(f"the recipe in {source.folder}: {'; '.join(map(fault, err.errors()))}") from err


@dataclass(frozen=True)
class Optimiser:
    """One bundle, the sets that it was made of, what it is to become, and the folder for what is found."""

    source: Bundle
    sets: RunSets
    target: Target
    device: torch.device
    folder: Path
    say: Say

    def draft(self, allowed_flips: float) -> BundleDraft:
        """Run the network in the new precision, recalibrate every score, evaluate, compare; return it as a draft.

        Raises:
            DataError: the sets are not those that the bundle was made of.
            OptimisationError: more verdicts flip than are allowed.
            RuntimeUnavailableError: the runtime cannot be had here, or not in this precision.
        """
        self._require_same_sets()
        self._require_same_calibration()
        quantised = self._quantised()
        scorer = self._scorer(quantised)
        calibrated = self._calibrate(scorer)
        predictor = calibrated.predictor(scorer)
        before = score_sets(self.source.predictor.scorer, self.sets.tests, self.say)
        after = score_sets(scorer, self.sets.tests, self.say)
        optimisation = compare(Measured(self.source.predictor, before), Measured(predictor, after), self._comparison())
        write_json(self.folder / "optimisation.json", optimisation.model_dump())
        require_few_flips(optimisation, allowed_flips)
        evaluation = self._evaluate(predictor, after)
        return self._draft(predictor, calibrated, quantised, evaluation, optimisation)

    @property
    def _recipe(self) -> Recipe:
        return self.sets.recipe

    @property
    def _manifest(self) -> Manifest:
        return self.source.manifest

    def _require_same_sets(self) -> None:
        tests = self.sets.tests
        read = {"train": self.sets.train, "calibration": self.sets.held_out, "test": tests.test}
        read |= {f"ood {name}": image_set for name, image_set in tests.ood.items()}
        stated = {record.role: record.sha256 for record in self._manifest.provenance.data}
        for role, image_set in read.items():
            if image_set.fingerprint != stated.get(role):
                raise DataError(
                    f"{image_set.name} in {self.sets.data_dir} has fingerprint {image_set.fingerprint}; "
                    f"{self.source.folder} was made with {stated.get(role)} as {role}: give the images that it was "
                    "made of, or its figures and thresholds would be of others"
                )

    def _require_same_calibration(self) -> None:
        """Hold the bundle's own calibration scores against what its network makes of the held-out images now."""
        self.say("scoring the calibration images in float32")
        sent = as_sent(self.sets.held_out.images, self._recipe.calibrate.jpeg, self._recipe.seed)
        found = self.source.predictor.predict_by_all(sent)
        tolerances = _tolerances(self._manifest.execution)
        for name, score in self.source.predictor.scores.items():
            stored, values = score.calibration_scores, calibration.sorted_scores(found[name].value)
            difference = float(np.abs(values - stored).max()) if len(values) == len(stored) else np.inf
            if not difference <= tolerances[name]:
                raise DataError(
                    f"{name} of the {len(values)} calibration images differs by {difference:.4g} from what "
                    f"{self.source.folder} holds of {len(stored)}; at most {tolerances[name]:.4g} is allowed: the "
                    "split, or how images are sent as JPEG, is another here"
                )

    def _quantised(self) -> OpenVinoIr | None:
        if self.target.precision != "int8":
            return None
        images = self._sample()
        self.say(f"quantising on {len(images)} training images")
        return quantise(read_network(self.source), self._manifest.preprocess, images)

    def _sample(self) -> ImageSet:
        return quantisation_sample(self.sets.train, self._recipe.seed)

    def _scorer(self, quantised: OpenVinoIr | None) -> Scorer:
        manifest = self._manifest
        network = RunnableNetwork(
            read_network(self.source), manifest.preprocess, self.target.precision, self.source.sha256, quantised
        )
        options = RuntimeOptions(self.target.runtime, self.device)
        runtime: Runtime = run_accepted(network, options, lambda started: started)
        return Scorer(runtime, manifest.preprocess, manifest.temperature)

    def _calibrate(self, scorer: Scorer) -> Calibrated:
        self.say(f"calibrating {scorer.runtime.name}")
        further = [each.score for name, each in self.source.predictor.scores.items() if name != "negative_energy"]
        recipe, folder = self._recipe, self.folder / "calibrate"
        return calibrate(recipe.calibrate, scorer, self.sets.held_out, recipe.seed, folder, further)

    def _evaluate(self, predictor: Predictor, scores: NetworkScores) -> Evaluation:
        """Return all figures of the bundle to be; those of the classifier before fine-tuning stay, of float32."""
        recipe, before = self._recipe, self._manifest.evaluation
        draws, seed = recipe.evaluate.draws, recipe.seed
        found = evaluate(self.sets.tests, scores, None, predictor, draws=draws, seed=seed, say=self.say)
        found = found.model_copy(update={"untuned": before.untuned if before else None})
        report.write(self.folder / "evaluate", found, predictor.verdict, scores, None)
        return found

    def _draft(
        self,
        predictor: Predictor,
        calibrated: Calibrated,
        quantised: OpenVinoIr | None,
        evaluation: Evaluation,
        optimisation: Optimisation,
    ) -> BundleDraft:
        golden, files = golden_images(predictor, self.sets.held_out)
        manifest = self._manifest
        stored: dict[str, NDArray[np.float32]] = {
            name: each.calibration_scores for name, each in calibrated.scores.items()
        }
        execution = self._execution(predictor, [files[image.file] for image in golden], quantised is not None)
        changes = {
            "schema_version": SCHEMA_VERSION,
            "execution": execution,
            "decoder": images.DECODER,
            "calibrations": dict(calibrated.specs),
            "golden": golden,
            "evaluation": evaluation,
            "optimisation": optimisation,
            "files": {},
        }
        manifest = Manifest.model_validate(manifest.model_copy(update=changes).model_dump())
        statistics = {name: each.score.statistics for name, each in calibrated.scores.items()}
        weights = read_network(self.source).state_dict()
        draft = BundleDraft(manifest, weights, stored, files, statistics, quantised)
        require_draft_small_enough(self._recipe, draft)
        return draft

    def _execution(self, predictor: Predictor, golden: list[bytes], has_graph: bool) -> Execution:
        tolerances = {
            name: max(least, self._strays(name, predictor, golden))
            for name, least in _tolerances(self._manifest.execution).items()
        }
        structure, weights = QUANTISED
        graph = QuantisedGraph(structure=structure, weights=weights, images=len(self._sample())) if has_graph else None
        return Execution(
            precision=self.target.precision,
            quantised=graph,
            tolerance=tolerances.pop("negative_energy"),
            score_tolerances=tolerances,
        )

    def _strays(self, name: ScoreName, predictor: Predictor, golden: list[bytes]) -> float:
        """Return how far a golden score may stray where another machine, or another runtime, runs this precision."""
        if self.target.precision == "int8":
            return INT8_TOLERANCE * float(np.ptp(predictor.scores[name].calibration_scores))
        pixels = np.stack([images.load(file, self._manifest.preprocess) for file in golden])
        before, after = (each.predict_by_all(pixels)[name].value for each in (self.source.predictor, predictor))
        return BFLOAT16_TOLERANCE * float(np.abs(after - before).max())

    def _comparison(self) -> Comparison:
        recipe = self._recipe
        return Comparison(self.source, self.sets.tests, self.device, recipe.evaluate.draws, recipe.seed)


def _tolerances(execution: Execution) -> dict[ScoreName, float]:
    return {"negative_energy": execution.tolerance, **execution.score_tolerances}


def require_few_flips(optimisation: Optimisation, allowed: float) -> None:
    """Refuse what changes more than the allowed share of verdicts.

    Raises:
        OptimisationError: the share that changes, and how to allow it.
    """
    if optimisation.flipped > round(100 * allowed, 4):
        raise OptimisationError(
            f"{optimisation.flipped:.2f} % of {optimisation.images:,} verdicts flip on {optimisation.runtime}, each "
            f"bundle at its own threshold; {100 * allowed:g} % are allowed: keep {optimisation.source}, take a higher "
            f"precision, or allow them with --allow-flips {math.ceil(100 * optimisation.flipped) / 10_000:.4f}"
        )
