"""Scores that perturb their input: ODIN and Mahalanobis. Offline only: no bundle carries them, no service answers them.

They need the gradient of a score by the pixels, two forward passes and one backward pass an image where a one-pass
score needs one forward pass, and a network of PyTorch.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.networks import NetworkOutput, NormalisedNetwork
from model_store.predictor import BATCH_SIZE
from model_store.scores import Mahalanobis
from model_store.scores.gaussian import Whitened

OutputScore = Callable[[NetworkOutput], Tensor]
"""From logits and features to float32 (N,), higher = more in-distribution, differentiable."""


def odin(
    network: NormalisedNetwork, images: NDArray[np.uint8], *, temperature: float, epsilons: Sequence[float]
) -> NDArray[np.float32]:
    """Return max softmax(f(x') / T) for each epsilon, float32 (len(epsilons), N) in (0, 1] (Liang et al., 2018).

    x' = x - epsilon sign(grad_x CE(f(x) / T, argmax f(x))) / std, with x the normalised image: epsilon counts in the
    pixel range [0, 1], and x' is not cut off at black and white, as in the authors' implementation.

    Args:
        network: put in evaluation mode; it computes on the device of its weights, in float32.
        images: uint8 (N, H, W, 3), N >= 1.
        temperature: above 0.
        epsilons: one or more, each at least 0; 0 leaves the images as they are.

    Raises:
        ValueError: images, temperature or epsilons are not of this kind.
        FloatingPointError: a score is not finite.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")

    def log_confidence(output: NetworkOutput) -> Tensor:
        return torch.log_softmax(output.logits / temperature, dim=1).amax(dim=1)  # minus that cross-entropy

    return np.exp(perturbed(network, images, log_confidence, epsilons))


def perturbed_mahalanobis(
    network: NormalisedNetwork, images: NDArray[np.uint8], fitted: Mahalanobis, *, epsilons: Sequence[float]
) -> NDArray[np.float32]:
    """Return -min_c d_c(x')^2 for each epsilon, float32 (len(epsilons), N), at most 0 (Lee et al., 2018).

    x' = x - epsilon sign(grad_x min_c d_c(x)^2) / std, with x the normalised image and epsilon in the pixel range
    [0, 1]. The distances are of the penultimate features alone, without the authors' ensemble of layers, as in
    Liu et al. 2020. Half of it, as is usual, would rank the same.

    Args:
        network: put in evaluation mode; it computes on the device of its weights, in float32.
        images: uint8 (N, H, W, 3), N >= 1.
        fitted: the one-pass score of the same network's features, wherever it stands.
        epsilons: one or more, each at least 0; 0 leaves the images as they are.

    Raises:
        ValueError: images or epsilons are not of this kind.
        FloatingPointError: a score is not finite.
    """
    device = network.mean.device
    placed = Whitened(fitted.classes.means.to(device), fitted.classes.whitening.to(device))
    return perturbed(network, images, Mahalanobis(placed), epsilons)


def perturbed(
    network: NormalisedNetwork, images: NDArray[np.uint8], score: OutputScore, epsilons: Sequence[float]
) -> NDArray[np.float32]:
    """Return `score` of images that were moved to raise it, for each epsilon, float32 (len(epsilons), N).

    x' = x + epsilon sign(grad_x score(x)) / std, with x the normalised image.

    Args:
        network: put in evaluation mode; it computes on the device of its weights, in float32.
        images: uint8 (N, H, W, 3), N >= 1.
        score: what is raised, and returned for the image that was moved; on the network's device.
        epsilons: one or more, in units of the pixel range [0, 1], each at least 0.

    Raises:
        ValueError: images or epsilons are not of this kind.
        FloatingPointError: a score is not finite.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) == 0:
        raise ValueError(f"images are {images.dtype} {images.shape}; expected uint8 (N, H, W, 3), N >= 1")
    if not epsilons or not all(0 <= epsilon < float("inf") for epsilon in epsilons):
        raise ValueError(f"epsilons are {tuple(epsilons)}; give one or more, each finite and at least 0")
    network.eval()
    pieces = [
        _perturbed_batch(network, torch.from_numpy(np.ascontiguousarray(images[at : at + BATCH_SIZE])), score, epsilons)
        for at in range(0, len(images), BATCH_SIZE)
    ]
    scores: NDArray[np.float32] = torch.cat(pieces, dim=1).numpy()
    if not np.isfinite(scores).all():
        raise FloatingPointError("a perturbed score is not finite; the weights or the fitted statistics are damaged")
    return scores


def _perturbed_batch(
    network: NormalisedNetwork, pixels: Tensor, score: OutputScore, epsilons: Sequence[float]
) -> Tensor:
    normalised = network.normalise(pixels.to(network.mean.device)).requires_grad_()
    before = score(network.network(normalised))
    (gradient,) = torch.autograd.grad(before.sum(), normalised)  # of the sum: no image has a part in another's
    step = gradient.sign() / (network.std / 255)
    with torch.no_grad():
        moved = [score(network.network(normalised + epsilon * step)) if epsilon else before for epsilon in epsilons]
        return torch.stack(moved).cpu()
