import math
from decimal import Context, Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pytorch_ood.detector import EnergyBased, MaxSoftmax
from scipy.special import logsumexp, softmax

from model_store.scores import energy, gen, max_logit, max_softmax, negative_energy

LOGITS = arrays(
    np.float32,
    st.tuples(st.integers(1, 8), st.integers(2, 12)),
    elements=st.floats(-10_000, 10_000, width=32),
)


@given(LOGITS, st.sampled_from([0.5, 1.0, 2.0, 100.0]))
def test_negative_energy_is_eq_4_by_scipy(logits: np.ndarray, temperature: float) -> None:
    expected = temperature * logsumexp(logits.astype(np.float64) / temperature, axis=1)
    found = negative_energy(torch.from_numpy(logits), temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-4)


def test_negative_energy_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    torch.testing.assert_close(negative_energy(logits), torch.tensor([math.log(2), math.log(4)]))
    torch.testing.assert_close(negative_energy(logits, 2.0)[0].item(), 2 * math.log(2))
    torch.testing.assert_close(energy(logits), torch.tensor([-math.log(2), -math.log(4)]))


@pytest.mark.parametrize("scale", [1.0, 20.0, 10_000.0])
def test_scores_agree_with_pytorch_ood(scale: float) -> None:
    logits = scale * torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(energy(logits), EnergyBased.score(logits, t=1.0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(-max_softmax(logits), MaxSoftmax.score(logits), rtol=1e-5, atol=1e-5)


@given(LOGITS)
def test_max_softmax_by_scipy(logits: np.ndarray) -> None:
    expected = softmax(logits.astype(np.float64), axis=1).max(axis=1)
    np.testing.assert_allclose(max_softmax(torch.from_numpy(logits)), expected, rtol=1e-5)


@given(LOGITS, st.floats(-100, 100, width=32))
def test_negative_energy_moves_with_the_logits_and_softmax_does_not(logits: np.ndarray, shift: float) -> None:
    still, moved = torch.from_numpy(logits), torch.from_numpy(logits + np.float32(shift))
    # Float32 of up to 10,100 is exact to 0.001, in the shifted logits as in the energies.
    np.testing.assert_allclose(negative_energy(moved) - negative_energy(still), shift, atol=0.003)
    np.testing.assert_allclose(max_softmax(moved), max_softmax(still), rtol=0.003)


@pytest.mark.parametrize(
    "logits",
    [torch.zeros(3), torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 3).bfloat16()],
)
def test_logits_of_another_shape_or_type_are_refused(logits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"float32 \(N, K\)"):
        negative_energy(logits)
    with pytest.raises(ValueError, match=r"float32 \(N, K\)"):
        max_softmax(logits)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_not_above_zero_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        negative_energy(torch.zeros(1, 2), temperature)


def _generalised_entropy(logits: list[float], gamma: float, top_classes: int) -> float:
    """In the hundred digits that a sceptic needs."""
    with localcontext(Context(prec=100)):
        powers = [Decimal(logit).exp() for logit in logits]
        ordered = sorted((power / sum(powers) for power in powers), reverse=True)[:top_classes]
        exponent = Decimal(str(gamma))
        return float(-sum(p**exponent * (1 - p) ** exponent for p in ordered))


@pytest.mark.parametrize("gap", [0.0, 1.0, 8.0, 15.0, 30.0, 80.0])
@pytest.mark.parametrize(("gamma", "top_classes"), [(0.1, 100), (0.5, 2), (1.0, 1)])
def test_gen_by_hand_in_a_hundred_digits(gap: float, gamma: float, top_classes: int) -> None:
    """Also of an image so sure that 1 - p is 0 in float32: the scores of those differ, and their order counts."""
    logits = [gap, 0.0, -1.0, -2.5]
    expected = _generalised_entropy(logits, gamma, top_classes)
    found = float(gen(torch.tensor([logits]), gamma, top_classes))
    assert found == pytest.approx(expected, rel=1e-4)


def test_gen_of_even_odds_by_hand() -> None:
    assert float(gen(torch.zeros(1, 2))) == pytest.approx(-2 * 0.25**0.1)
    assert float(gen(torch.zeros(1, 4), gamma=1.0, top_classes=3)) == pytest.approx(-3 * 3 / 16)


@given(LOGITS)
def test_max_logit_is_the_greatest(logits: np.ndarray) -> None:
    np.testing.assert_array_equal(max_logit(torch.from_numpy(logits)), logits.max(axis=1))


@given(LOGITS)
def test_gen_is_finite_and_at_most_zero(logits: np.ndarray) -> None:
    found = gen(torch.from_numpy(logits)).numpy()
    assert np.isfinite(found).all()
    assert (found <= 0).all()


@pytest.mark.parametrize(("gamma", "top_classes"), [(0.0, 5), (-1.0, 5), (math.nan, 5), (0.1, 0)])
def test_gen_parameters_not_above_zero_are_refused(gamma: float, top_classes: int) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        gen(torch.zeros(1, 2), gamma, top_classes)
