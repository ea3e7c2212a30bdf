import numpy as np
import pytest
import torch
from pytorch_ood.detector import ODIN
from pytorch_ood.detector.mahalanobis import MahalanobisODIN
from torch import Tensor

from model_store.manifest import PreprocessSpec, WideResNetSpec
from model_store.networks import NormalisedNetwork, build_network
from model_store.score_specs import MahalanobisSpec
from model_store.scores import Head
from training.datasets import ImageSet
from training.fit_scores import fit_score
from training.perturbed_scores import odin, perturbed, perturbed_mahalanobis

EPSILONS = (0.0, 0.0014, 0.0048)


@pytest.fixture(scope="module")
def network(preprocess: PreprocessSpec, train_set: ImageSet) -> NormalisedNetwork:
    """A WRN-10-1 with dropout whose batch norms have seen images, so that evaluation mode matters twice."""
    torch.manual_seed(0)
    wide_resnet = build_network(WideResNetSpec(depth=10, widen_factor=1, dropout=0.3, num_classes=10))
    torch.nn.init.normal_(wide_resnet.head.weight, std=2.0)  # logits of some size, so that nothing is uniform
    network = NormalisedNetwork(wide_resnet, preprocess)
    with torch.no_grad():
        network(torch.from_numpy(train_set.images))
    return network


@pytest.fixture(scope="module")
def images(outliers: ImageSet) -> np.ndarray:
    return outliers.images[:24]


def normalised(network: NormalisedNetwork, images: np.ndarray) -> Tensor:
    return network.normalise(torch.from_numpy(images))


def std(preprocess: PreprocessSpec) -> list[float]:
    return list(preprocess.std)


@pytest.mark.parametrize("temperature", [1.0, 10.0, 1000.0])
def test_odin_agrees_with_pytorch_ood(
    network: NormalisedNetwork, preprocess: PreprocessSpec, images: np.ndarray, temperature: float
) -> None:
    ours = odin(network, images, temperature=temperature, epsilons=EPSILONS)
    network.eval()
    for epsilon, scores in zip(EPSILONS, ours, strict=True):
        theirs = ODIN(
            lambda x: network.network(x).logits, eps=epsilon, temperature=temperature, norm_std=std(preprocess)
        )
        # Theirs is higher for OOD. At T = 1000 all lie within 1e-2 of 1/10: hence a tolerance relative to their spread.
        expected = -theirs.predict(normalised(network, images)).numpy()
        np.testing.assert_allclose(scores, expected, atol=1e-4 * np.ptp(expected), rtol=0)


def test_perturbed_mahalanobis_agrees_with_pytorch_ood(
    network: NormalisedNetwork, preprocess: PreprocessSpec, train_set: ImageSet, images: np.ndarray
) -> None:
    network.eval()
    with torch.no_grad():
        features = network(torch.from_numpy(train_set.images)).features
    labels = torch.from_numpy(train_set.labels)
    fitted = fit_score(MahalanobisSpec(), features, labels, Head.of(network.network))
    means, whitening = fitted.statistics["class_means"], fitted.statistics["whitening"]
    epsilons = (0.0, 0.002, 0.01)
    ours = perturbed_mahalanobis(network, images, fitted, epsilons=epsilons)
    for epsilon, scores in zip(epsilons, ours, strict=True):
        theirs = MahalanobisODIN(lambda x: network.network(x).features, eps=epsilon, norm_std=std(preprocess))
        # The same Gaussians: theirs inverts a sum of outer products in float32, which is right to three digits.
        theirs._base.mu, theirs._base.precision = means, whitening @ whitening.T
        expected = -2 * theirs.predict(normalised(network, images)).numpy()  # theirs: half of it, higher for OOD
        np.testing.assert_allclose(scores, expected, atol=1e-4 * np.ptp(expected), rtol=0)


def test_perturbation_raises_the_score_it_follows(network: NormalisedNetwork, images: np.ndarray) -> None:
    unmoved, little, _ = odin(network, images, temperature=10.0, epsilons=EPSILONS)
    assert (little > unmoved).mean() > 0.9


def test_perturbed_scores_do_not_depend_on_the_batch(network: NormalisedNetwork, images: np.ndarray) -> None:
    together = odin(network, images, temperature=10.0, epsilons=EPSILONS)
    alone = np.concatenate(
        [odin(network, images[i : i + 1], temperature=10.0, epsilons=EPSILONS) for i in range(4)], axis=1
    )
    np.testing.assert_allclose(together[:, :4], alone, rtol=1e-5)


def test_more_images_than_a_batch_keep_their_order(network: NormalisedNetwork, images: np.ndarray) -> None:
    many = np.concatenate([images] * 11)  # 264: one batch of 256 and a rest
    scores = odin(network, many, temperature=10.0, epsilons=(0.002,))[0]
    assert scores.shape == (264,)
    np.testing.assert_allclose(scores.reshape(11, 24), np.tile(scores[:24], (11, 1)), rtol=1e-5)


def test_perturbed_scores_leave_no_gradients_and_train_nothing(network: NormalisedNetwork, images: np.ndarray) -> None:
    network.zero_grad()
    network.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    odin(network, images, temperature=1.0, epsilons=(0.002,))
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"epsilons": ()}, r"epsilons are \(\); give one or more"),
        ({"epsilons": (0.1, -0.1)}, r"epsilons are \(0.1, -0.1\); give one or more, each finite and at least 0"),
        ({"epsilons": (float("nan"),)}, "each finite and at least 0"),
        ({"images": np.zeros((1, 32, 32, 3), np.float32)}, r"images are float32 \(1, 32, 32, 3\); expected uint8"),
        ({"images": np.zeros((0, 32, 32, 3), np.uint8)}, "N >= 1"),
    ],
)
def test_odin_refuses(network: NormalisedNetwork, images: np.ndarray, change: dict, message: str) -> None:
    given = {"images": images, "temperature": 1.0, "epsilons": (0.0,)} | change
    with pytest.raises(ValueError, match=message):
        odin(network, given.pop("images"), **given)


def test_damaged_weights_are_refused(network: NormalisedNetwork, images: np.ndarray) -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        perturbed(network, images, lambda output: output.logits.sum(dim=1) * float("nan"), (0.0,))
