"""Stage 1 for who has a classifier that was trained elsewhere: its weights, from a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from model_store.manifest import OnnxSpec
from model_store.networks import build_network
from model_store.networks.cut_classifier import CutClassifier
from training.config import Recipe
from training.datasets import ImageSet
from training.errors import RecipeError, ResumeError, WeightsError
from training.evaluate import Say
from training.pretrain import pretrain_inputs
from training.recipe_network import require_classifies
from training.run_folder import is_done, open_stage, read_weights, require_finite, require_inputs, write_weights

SAFETENSORS = ".safetensors"


def given_weights(recipe: Recipe, train_set: ImageSet, data_dir: Path, folder: Path, say: Say) -> nn.Module:
    """Return the recipe's network with the weights of the file that it names; keep them in `folder`.

    The file goes by our names or by those of the network's library. Once they are kept the file is needed no more; one
    of that name with other weights is refused.

    Raises:
        WeightsError: the file cannot be read, or holds no such weights, or some that are not finite.
        ResumeError: `folder` holds another classifier.
        RecipeError: the recipe names no file, or an ONNX graph that does not take images of the recipe's size.
    """
    if recipe.weights is None:
        raise RecipeError(f"recipe {recipe.name} names no file of weights")
    path, network = data_dir / recipe.weights, build_network(recipe.network)
    inputs = pretrain_inputs(recipe, train_set)
    if is_done(folder):
        require_inputs(folder, inputs)
        read_weights(folder, network)
        if path.exists():
            _require_same(path, folder, read_given(path, network), network)
        return network
    network.load_state_dict(read_given(path, network))
    if isinstance(recipe.network, OnnxSpec):  # whose graph is known from here on
        require_classifies(network, recipe.network, recipe.preprocess)
    if recipe.data.calibration_images:
        say(
            f"warning: the threshold's guarantee holds only if {path} was not trained on the images of "
            f"{recipe.data.train} that are held out for calibration"
        )
    open_stage(folder, inputs)
    write_weights(folder, network)
    return network


def read_given(path: Path, network: nn.Module) -> dict[str, Tensor]:
    """Read weights for `network`, by the names and in the types of its `state_dict`.

    path: safetensors; else what `torch.save` wrote, of which no code is run: a `state_dict`, or a checkpoint that has
    it under the key `state_dict`.

    Raises:
        WeightsError: as `given_weights`.
    """
    weights = _read(path)
    if isinstance(network, CutClassifier):
        weights = network.by_own_names(weights)
    expected = network.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        found, wanted = _shape(weights.get(name)), _shape(expected.get(name))
        if found != wanted:
            raise WeightsError(f"{path}: {name} is {found}; the recipe's network has {wanted}")
    converted = {name: weights[name].to(tensor.dtype) for name, tensor in expected.items()}
    require_finite(path, converted, f"take other weights than {path.name}")
    return converted


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == SAFETENSORS:
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as err:
        raise WeightsError(
            f"{path} cannot be read ({err.strerror or err}); weights is a path below the data folder"
        ) from err
    except SafetensorError as err:
        raise WeightsError(f"{path} is no safetensors file: {err}") from err
    except Exception as err:  # a file that is none, or one with code in it
        raise WeightsError(
            f"{path} cannot be read without running what is in it ({type(err).__name__}); save the state_dict alone, "
            "best as safetensors"
        ) from err
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(weights, Mapping) or not all(_is_named(*item) for item in weights.items()):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not tensors by name; save the state_dict")
    return dict(weights)


def _is_named(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(tuple(tensor.shape))


def _require_same(path: Path, folder: Path, found: Mapping[str, Tensor], kept: nn.Module) -> None:
    for name, tensor in kept.state_dict().items():
        if not torch.equal(tensor, found[name]):
            raise ResumeError(
                f"{folder} was begun with other weights than those now in {path} ({name} differs); take another "
                "folder, or remove this one to begin again"
            )
