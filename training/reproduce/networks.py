"""The networks of one in-distribution set and one seed, each trained once, in a folder of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors.torch import load_file, save
from torch import Tensor, nn

from model_store.manifest import PreprocessSpec
from model_store.networks import NetworkOutput, NormalisedNetwork
from model_store.predictor import Scorer
from model_store.runtimes import TorchRuntime
from model_store.score_specs import ScoreName, ScoreSpec
from model_store.scores import Head, OnePassScore
from training.augment_spec import AugmentSpec
from training.config import SYNTHETIC, DataSpec, Recipe
from training.datasets import ImageSet
from training.evaluate import Say
from training.finetune import finetune
from training.fit_scores import fit_score, stratified_rows
from training.pretrain import pretrain
from training.reproduce.benchmark import InDistributionSpec
from training.reproduce.methods import CLASSIFIER, slug
from training.reproduce.size import Size
from training.run_folder import is_done, open_stage, weights_sha256, write_bytes
from training.stage_specs import FinetuneSpec
from training.trainer import Progress, Trainer


@dataclass(frozen=True)
class Setting:
    """What all networks of one in-distribution set have in common."""

    name: str
    spec: InDistributionSpec
    size: Size
    preprocess: PreprocessSpec
    augment: AugmentSpec

    def score_spec(self, name: ScoreName) -> ScoreSpec:
        """Return a one-pass score with its default hyperparameters, and k as the set has it."""
        given = {"kind": name} | ({"k": self.spec.knn_k} if name == "knn" else {})
        spec: ScoreSpec = TypeAdapter(ScoreSpec).validate_python(given)
        return spec


@dataclass(frozen=True)
class FinetunePlan:
    """How a network is fine-tuned: a recipe's table, and whether outliers are made of the training images."""

    spec: FinetuneSpec
    synthetic: bool = False


class TrainedNetwork:
    """A finished network and what it makes of images, in float32, in evaluation mode."""

    def __init__(
        self, network: nn.Module, sha256: str, preprocess: PreprocessSpec, device: torch.device, fit_set: ImageSet
    ) -> None:
        """Take a network whose weights file has this SHA-256; `fit_set` is what its scores are fitted on."""
        self.sha256 = sha256
        self.fit_set = fit_set
        self.scorer = Scorer(TorchRuntime(network, preprocess, device=device), preprocess, temperature=1.0)
        self.normalised = NormalisedNetwork(network, preprocess).to(device).eval()

    def output(self, images: NDArray[np.uint8]) -> NetworkOutput:
        """Return logits float32 (N, K) and features float32 (N, D) on the host, of uint8 (N, H, W, 3)."""
        scored = self.scorer.score(images)
        return NetworkOutput(logits=scored.logits.clone(), features=scored.features.clone())

    def fitted(self, spec: ScoreSpec) -> OnePassScore:
        """Return a one-pass score fitted on this network's features."""
        return fit_score(spec, self._fit_features, self.fit_set.labels, self._head)

    @cached_property
    def _fit_features(self) -> Tensor:
        return self.output(self.fit_set.images).features

    @cached_property
    def _head(self) -> Head:
        return Head.of(self.normalised.network)


@dataclass(frozen=True)
class Lab:
    """Trains and loads the networks of one seed, on `train` and nothing else; what is done is never repeated."""

    setting: Setting
    seed: int
    train: ImageSet
    outliers: ImageSet
    folder: Path
    device: torch.device
    progress: Progress
    say: Say

    def classifier(self) -> TrainedNetwork:
        """Train the classifier, or resume or load it.

        Raises:
            ResumeError: its folder holds another.
            DivergedError: the loss is not finite.
        """
        self._announce(CLASSIFIER)
        recipe = self._recipe(_any_plan(self.setting.size))
        network = pretrain(recipe, self.train, self.folder / CLASSIFIER, self._trainer)
        return self._trained(network, CLASSIFIER)

    def fine_tuned(self, name: str, plan: FinetunePlan) -> TrainedNetwork:
        """Fine-tune the classifier, which is trained before if it is not yet, or resume or load what `name` holds.

        Raises:
            ResumeError: the folder `name` holds another network.
            DivergedError: the loss is not finite.
        """
        self.classifier()
        self._announce(name)
        network = finetune(
            self._recipe(plan),
            self.train,
            None if plan.synthetic else self.outliers,
            self.folder / CLASSIFIER,
            self.folder / slug(name),
            self._trainer,
        )
        return self._trained(network, name)

    @property
    def _trainer(self) -> Trainer:
        return Trainer(self.device, self.progress)

    def _trained(self, network: nn.Module, name: str) -> TrainedNetwork:
        rows = stratified_rows(self.train.labels, self.setting.size.fit_images, self.seed)
        sha256 = weights_sha256(self.folder / slug(name))
        return TrainedNetwork(network, sha256, self.setting.preprocess, self.device, self.train.subset(rows))

    def _announce(self, name: str) -> None:
        if not is_done(self.folder / slug(name)):
            self.say(f"{self.setting.name}, {self.folder.name}: training {name}")

    def _recipe(self, plan: FinetunePlan) -> Recipe:
        size, source = self.setting.size, self.train.name
        outliers = SYNTHETIC if plan.synthetic else self.outliers.name
        return Recipe(
            name="reproduce",
            description=size.description,
            seed=self.seed,
            network=size.network.spec(self.setting.spec.classes),
            preprocess=self.setting.preprocess,
            data=DataSpec(train=source, test=source, outliers=outliers, calibration_images=0),
            augment=self.setting.augment,
            execution=size.execution,
            pretrain=size.pretrain,
            finetune=plan.spec,
        )


def _any_plan(size: Size) -> FinetunePlan:
    """Return what stands in a recipe that is only pretrained: the classifier does not depend on it."""
    return FinetunePlan(size.margin_trial(size.margins.pairs()[0]))


def kept_outputs(network: TrainedNetwork, sets: Mapping[str, ImageSet], folder: Path) -> dict[str, NetworkOutput]:
    """Return the network's outputs for every set by name, from `folder` if they are there, else kept in it.

    Raises:
        ResumeError: the folder holds those of other weights or images.
    """
    open_stage(folder, {"weights": network.sha256, "sets": {name: s.fingerprint for name, s in sets.items()}})
    path = folder / "outputs.safetensors"
    if not path.exists():
        outputs = {name: network.output(image_set.images) for name, image_set in sets.items()}
        tensors = {f"{name}/{part}": t for name, output in outputs.items() for part, t in output._asdict().items()}
        write_bytes(path, save(tensors))
    tensors = load_file(path)
    return {name: NetworkOutput(tensors[f"{name}/logits"], tensors[f"{name}/features"]) for name in sets}
