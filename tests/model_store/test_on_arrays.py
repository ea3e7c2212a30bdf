"""What each verdict takes, on arrays: the same numbers as PyTorch's, and none of its operations."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import logsumexp, softmax
from torch.utils._python_dispatch import TorchDispatchMode

from model_store import scores
from model_store.networks import NetworkOutput
from model_store.predictor import CalibratedScore, Predictor, Scorer
from model_store.scores import MaxSoftmax, NegativeEnergy, on_arrays

LOGITS = arrays(
    np.float32,
    st.tuples(st.integers(1, 8), st.integers(1, 12)),
    elements=st.floats(-10_000, 10_000, width=32),
)

SEEN_AS_ARRAYS = {"aten.detach.default", "aten.lift_fresh.default"}
"""How a tensor is seen as an array, and an array as a tensor: nothing is computed."""


@given(LOGITS, st.sampled_from([0.5, 1.0, 2.0, 100.0]))
def test_negative_energy_is_eq_4_by_scipy_and_by_pytorch(logits: np.ndarray, temperature: float) -> None:
    found = on_arrays.negative_energy(logits, temperature)
    assert found.dtype == np.float32
    expected = temperature * logsumexp(logits.astype(np.float64) / temperature, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(
        found, scores.negative_energy(torch.from_numpy(logits), temperature), rtol=1e-6, atol=1e-4
    )


@given(LOGITS)
def test_max_softmax_by_scipy_and_by_pytorch(logits: np.ndarray) -> None:
    found = on_arrays.max_softmax(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, softmax(logits.astype(np.float64), axis=1).max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found, scores.max_softmax(torch.from_numpy(logits)), rtol=1e-5)


def test_logits_as_far_apart_as_float32_goes() -> None:
    """Their difference is none of its numbers; a warning would be an error here."""
    most = np.finfo(np.float32).max
    logits = np.array([[most, -most], [-most, -most / 2]], np.float32)
    np.testing.assert_array_equal(on_arrays.negative_energy(logits), np.array([most, -most / 2], np.float32))
    np.testing.assert_array_equal(on_arrays.max_softmax(logits), np.ones(2, np.float32))


@pytest.mark.parametrize(("value", "finite"), [(0.0, True), (np.inf, False), (-np.inf, False), (np.nan, False)])
def test_one_value_that_is_not_finite_is_seen(value: float, finite: bool) -> None:
    values = np.ones((64, 128), np.float32)
    values[63, 127] = value
    assert on_arrays.all_finite(values) is finite


def test_the_scores_of_a_bundle_are_the_same_numbers() -> None:
    """So that what a reply calls confidence is its score max_softmax, and the flag follows from the energy it gives."""
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)) * 10
    output = NetworkOutput(logits, torch.zeros(64, 1))
    np.testing.assert_array_equal(NegativeEnergy(2.0)(output), on_arrays.negative_energy(logits.numpy(), 2.0))
    np.testing.assert_array_equal(MaxSoftmax()(output), on_arrays.max_softmax(logits.numpy()))


class _Operations(TorchDispatchMode):
    """Notes what PyTorch is asked to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) not in SEEN_AS_ARRAYS:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_verdict_takes_no_operation_of_pytorch(scorer: Scorer) -> None:
    """Each of them lets go of the interpreter, and waits for it behind a busy event loop."""
    score = CalibratedScore(NegativeEnergy(), np.arange(100, dtype=np.float32), np.float32(5))
    predictor = Predictor(scorer, {"negative_energy": score})
    output = NetworkOutput(torch.zeros(4, 10), torch.zeros(4, 32))
    with _Operations() as operations:
        predictor.judge(predictor.scorer.from_output(output))
        assert operations.names == []
        output.logits.amax(dim=1)
    assert operations.names == ["aten.amax.default"]
