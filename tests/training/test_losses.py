import math

import pytest
import torch
from pytorch_ood.loss import EnergyRegularizedLoss, OutlierExposureLoss
from torch.nn import functional as F

from model_store.networks import NetworkOutput
from training.losses import (
    balanced_energy,
    class_weights,
    energy_bounded,
    energy_ranking,
    make_objective,
    outlier_exposure,
)
from training.objective_spec import (
    BalancedEnergySpec,
    CrossEntropySpec,
    EnergyBoundedSpec,
    OutlierExposureSpec,
    RankedExposureSpec,
)

PAPER = EnergyBoundedSpec(margin_in=-23.0, margin_out=-5.0, weight=0.1)


def _logits(scale: float) -> torch.Tensor:
    return (scale * torch.randn(24, 10, generator=torch.Generator().manual_seed(1))).requires_grad_()


def _output(logits: torch.Tensor) -> NetworkOutput:
    return NetworkOutput(logits=logits, features=torch.zeros(len(logits), 3))


LABELS = torch.arange(8) % 10
# pytorch-ood marks outliers by negative labels.
ALL_LABELS = torch.cat([LABELS, torch.full((16,), -1)])


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 30.0])
def test_energy_fine_tuning_agrees_with_pytorch_ood_in_value_and_gradient(scale: float) -> None:
    ours, theirs = _logits(scale), _logits(scale)
    loss = make_objective(PAPER)(_output(ours), LABELS)
    expected = EnergyRegularizedLoss(alpha=0.1, margin_in=-23.0, margin_out=-5.0)(theirs, ALL_LABELS)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_outlier_exposure_agrees_with_pytorch_ood_in_gradient(scale: float) -> None:
    ours, theirs = _logits(scale), _logits(scale)
    make_objective(OutlierExposureSpec(weight=0.5))(_output(ours), LABELS).backward()
    each = OutlierExposureLoss(alpha=0.5, reduction="none")(theirs, ALL_LABELS)
    (each[:8].mean() + each[8:].mean()).backward()  # its own mean would weigh the roles by their sizes
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_energy_bounded_by_hand() -> None:
    """Two logits c, c have energy -(c + ln 2)."""
    ln2 = math.log(2)
    logits_in = torch.tensor([[10.0, 10.0], [30.0, 30.0]])  # energies -10.69 (13 - ln 2 - .. above -23), -30.69 (below)
    logits_out = torch.tensor([[7.0, 7.0], [1.0, 1.0]])  # energies -7.69 (below -5), -1.69 (above)
    expected = ((23 - 10 - ln2) ** 2 + 0) / 2 + ((-5 + 7 + ln2) ** 2 + 0) / 2
    assert energy_bounded(logits_in, logits_out, -23.0, -5.0).item() == pytest.approx(expected, rel=1e-6)


def test_outlier_exposure_of_equal_logits_is_log_k() -> None:
    assert outlier_exposure(torch.full((3, 4), 2.5)).item() == pytest.approx(math.log(4), rel=1e-6)


def test_energy_ranking_by_hand() -> None:
    """Energies -10 and -30 against -12 and -9, to float32: only the outlier of -12 lies below an image."""
    logits_in = torch.tensor([[10.0, -90.0], [30.0, -70.0]])
    logits_out = torch.tensor([[12.0, -90.0], [-91.0, 9.0]])
    expected = sum(math.log1p(math.exp(gap)) for gap in (-10 + 12, -10 + 9, -30 + 12, -30 + 9)) / 4
    assert energy_ranking(logits_in, logits_out).item() == pytest.approx(expected, rel=1e-6)


def test_energy_ranking_takes_energies_of_any_scale_and_bounds_the_pairs_ranked_wrong() -> None:
    logits_in, logits_out = _logits(5.0)[:8], _logits(5.0)[8:]
    found = energy_ranking(logits_in, logits_out)
    torch.testing.assert_close(energy_ranking(logits_in + 40, logits_out + 40), found)
    energies = [-torch.logsumexp(logits, dim=1) for logits in (logits_in, logits_out)]
    wrong = (energies[0][:, None] > energies[1][None, :]).float().mean()
    assert 0 < wrong < found / math.log(2)


def test_ranked_exposure_is_the_sum_of_its_parts() -> None:
    logits = _logits(2.0)
    found = make_objective(RankedExposureSpec(weight=0.25, ranking=3.0))(_output(logits), LABELS)
    parts = F.cross_entropy(logits[:8], LABELS), outlier_exposure(logits[8:]), energy_ranking(logits[:8], logits[8:])
    torch.testing.assert_close(found, parts[0] + 0.25 * parts[1] + 3 * parts[2])


def test_cross_entropy_ignores_nothing() -> None:
    logits = _logits(1.0)[:8]
    loss = make_objective(CrossEntropySpec())(_output(logits), LABELS)
    torch.testing.assert_close(loss, F.cross_entropy(logits, LABELS))


def test_balanced_energy_by_hand() -> None:
    """An outlier of one class alone weighs what that class does: hinges of 2, 1 and 0, weights of 3, 1 and 3."""
    logits_in = torch.tensor([[10.0, -90.0], [30.0, -70.0]])  # energies -10 and -30 to float32
    logits_out = torch.tensor([[7.0, -93.0], [-94.0, 6.0], [1.0, -99.0]])  # energies -7, -6, -1
    found = balanced_energy(logits_in, logits_out, -23.0, -5.0, torch.tensor([3.0, 1.0]))
    assert found.item() == pytest.approx(13**2 / 2 + (3 * 2**2 + 1 * 1**2 + 3 * 0) / (3 + 1 + 3), rel=1e-6)


def test_balanced_energy_weighs_by_the_softmax_and_lets_no_gradient_through_the_weights() -> None:
    logits_out = torch.tensor([[1.0, 3.0], [4.0, 2.0]], dtype=torch.float32, requires_grad=True)
    weights = torch.tensor([0.9, 0.2])
    found = balanced_energy(torch.full((1, 2), 99.0), logits_out, -23.0, -1.0, weights)
    found.backward()
    e, expected = math.e, []
    z = [(0.9 * e + 0.2 * e**3) / (e + e**3), (0.9 * e**4 + 0.2 * e**2) / (e**4 + e**2)]
    energies = [-math.log(e + e**3), -math.log(e**4 + e**2)]
    assert found.item() == pytest.approx(sum(w * (-1 - x) ** 2 for w, x in zip(z, energies, strict=True)) / sum(z))
    softmax = [[e / (e + e**3), e**3 / (e + e**3)], [e**4 / (e**4 + e**2), e**2 / (e**4 + e**2)]]
    for w, x, p in zip(z, energies, softmax, strict=True):  # d energy / d logits = -softmax
        expected.append([2 * w / sum(z) * (-1 - x) * share for share in p])
    torch.testing.assert_close(logits_out.grad, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(("gamma", "counts"), [(0.0, [5, 0, 900]), (0.5, [7, 7, 7])])
def test_balanced_energy_of_equal_weights_is_energy_bounded(gamma: float, counts: list[int]) -> None:
    ours, plain = (torch.randn(24, 3, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    labels = torch.arange(8) % 3
    spec = BalancedEnergySpec(margin_in=-23.0, margin_out=5.0, weight=0.1, gamma=gamma)
    loss = make_objective(spec, torch.tensor(counts))(_output(ours), labels)
    expected = make_objective(PAPER.model_copy(update={"margin_out": 5.0}))(_output(plain), labels)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, plain.grad)


def test_class_weights_are_powers_of_shares_and_none_is_zero() -> None:
    found = class_weights(torch.tensor([0, 3, 12]), gamma=0.5)
    torch.testing.assert_close(found, torch.tensor([1 / 18, 4 / 18, 13 / 18]).sqrt())


def test_balanced_energy_without_counts_is_refused() -> None:
    with pytest.raises(ValueError, match="outlier_classes"):
        make_objective(BalancedEnergySpec(margin_in=-23.0, margin_out=-5.0))
