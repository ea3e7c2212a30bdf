import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_store.bundle import load_bundle
from model_store.predictor import Predictor, Scorer
from model_store.runtimes import TorchRuntime

# Float32 convolutions sum in another order in another batch size; energies here are around 3.
ACROSS_BATCHES = 1e-4


@pytest.fixture(scope="module")
def predictor(draft, tmp_path_factory) -> Predictor:
    from model_store.store import Store

    return load_bundle(Store(tmp_path_factory.mktemp("store")).publish(draft)).predictor


@pytest.fixture(scope="module")
def alone(predictor: Predictor, test_images: np.ndarray) -> np.ndarray:
    return np.concatenate([predictor.predict(image[None]).negative_energy for image in test_images])


@settings(max_examples=30, deadline=None)
@given(index=st.lists(st.integers(0, 99), min_size=1, max_size=40))
def test_image_gets_its_own_answer_in_any_batch(predictor, test_images, alone, index: list[int]) -> None:
    found = predictor.finish(predictor.start(test_images[index]))
    np.testing.assert_allclose(found.negative_energy, alone[index], atol=ACROSS_BATCHES)


def test_long_arrays_are_scored_in_pieces_in_order(predictor, test_images, alone) -> None:
    index = np.random.default_rng(0).integers(0, len(test_images), 700)
    found = predictor.predict(test_images[index])
    np.testing.assert_allclose(found.negative_energy, alone[index], atol=ACROSS_BATCHES)
    assert len(found.p_value) == len(found.class_id) == len(found.confidence) == len(found.is_ood) == 700


def test_batches_may_be_started_before_others_are_finished(predictor, test_images, alone) -> None:
    tickets = [predictor.start(test_images[at : at + 10]) for at in (0, 10, 20)]
    found = np.concatenate([predictor.finish(ticket).negative_energy for ticket in tickets])
    np.testing.assert_allclose(found, alone[:30], atol=ACROSS_BATCHES)


def test_pixels_may_be_read_only_or_a_view(predictor, test_images, alone) -> None:
    locked = test_images[::-1][:5]
    locked.flags.writeable = False
    found = predictor.predict(locked)
    np.testing.assert_allclose(found.negative_energy, alone[::-1][:5], atol=ACROSS_BATCHES)


def test_verdict_is_one_identity(predictor, test_images) -> None:
    found = predictor.predict(test_images)
    n = len(predictor.calibration_scores)
    np.testing.assert_array_equal(found.is_ood, found.negative_energy <= predictor.threshold)
    np.testing.assert_array_equal(found.is_ood, found.p_value <= 10 / (n + 1))  # floor(0.05 * 201) = 10
    assert found.negative_energy.dtype == np.float32
    assert found.is_ood.any()
    assert not found.is_ood.all()


def test_confidence_is_the_softmax_of_the_class(predictor, test_images) -> None:
    scored = predictor.scorer.score(test_images)
    probabilities = torch.softmax(scored.logits, dim=1).numpy()
    np.testing.assert_allclose(scored.confidence, probabilities[np.arange(100), scored.class_id], rtol=1e-5)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((1, 3, 32, 32), np.uint8),
        np.zeros((1, 31, 32, 3), np.uint8),
        np.zeros((0, 32, 32, 3), np.uint8),
    ],
)
def test_pixels_of_another_shape_or_type_are_refused(predictor, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(N, 32, 32, 3\)"):
        predictor.start(images)


def test_logits_that_are_not_finite_give_no_verdict(network, preprocess, test_images) -> None:
    import copy

    damaged = copy.deepcopy(network)
    damaged.head.bias.data[3] = torch.inf
    scorer = Scorer(TorchRuntime(damaged, preprocess, device=torch.device("cpu")), preprocess, 1.0)
    with pytest.raises(FloatingPointError, match="not finite"):
        scorer.score(test_images[:2])


def test_bfloat16_runtime_keeps_energies_in_float32(network, preprocess, test_images) -> None:
    runtime = TorchRuntime(network, preprocess, device=torch.device("cpu"), precision="bfloat16")
    narrow = Scorer(runtime, preprocess, 1.0).score(test_images).negative_energy
    wide = Scorer(TorchRuntime(network, preprocess, device=torch.device("cpu")), preprocess, 1.0).score(test_images)
    assert len(np.unique(narrow)) > 90  # in bfloat16 energies collapse to a few values
    np.testing.assert_allclose(narrow, wide.negative_energy, atol=0.1)


@pytest.mark.gpu
def test_cuda_agrees_with_cpu(network, preprocess, test_images) -> None:
    import copy

    cuda = TorchRuntime(copy.deepcopy(network), preprocess, device=torch.device("cuda"))
    on_cuda = Scorer(cuda, preprocess, 1.0).score(test_images).negative_energy
    on_cpu = Scorer(TorchRuntime(network, preprocess, device=torch.device("cpu")), preprocess, 1.0).score(test_images)
    np.testing.assert_allclose(on_cuda, on_cpu.negative_energy, atol=1e-3)


def test_scores_take_one_thread_and_leave_the_callers_number(predictor, test_images) -> None:
    """Threads that help would spin on the cores that the next batch is computed on."""
    from model_store.predictor import CalibratedScore

    seen: dict[str, int] = {}

    class Watched:
        name, statistics = "max_logit", {}

        def __call__(self, output) -> torch.Tensor:
            seen["score"] = torch.get_num_threads()
            return output.logits.amax(dim=1)

    watched = CalibratedScore(Watched(), predictor.calibration_scores, predictor.threshold)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        Predictor(predictor.scorer, {"max_logit": watched}, "max_logit").predict(test_images[:8])
        assert seen == {"score": 1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
