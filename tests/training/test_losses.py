import math

import pytest
import torch
from pytorch_ood.loss import EnergyRegularizedLoss, OutlierExposureLoss
from torch.nn import functional as F

from training.config import CrossEntropySpec, EnergyBoundedSpec, OutlierExposureSpec
from training.losses import energy_bounded, make_objective, outlier_exposure

PAPER = EnergyBoundedSpec(margin_in=-23.0, margin_out=-5.0, weight=0.1)


def _logits(scale: float) -> torch.Tensor:
    return (scale * torch.randn(24, 10, generator=torch.Generator().manual_seed(1))).requires_grad_()


LABELS = torch.arange(8) % 10
# pytorch-ood marks outliers by negative labels.
ALL_LABELS = torch.cat([LABELS, torch.full((16,), -1)])


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 30.0])
def test_energy_fine_tuning_agrees_with_pytorch_ood_in_value_and_gradient(scale: float) -> None:
    ours, theirs = _logits(scale), _logits(scale)
    loss = make_objective(PAPER)(ours, LABELS)
    expected = EnergyRegularizedLoss(alpha=0.1, margin_in=-23.0, margin_out=-5.0)(theirs, ALL_LABELS)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_outlier_exposure_agrees_with_pytorch_ood_in_gradient(scale: float) -> None:
    ours, theirs = _logits(scale), _logits(scale)
    make_objective(OutlierExposureSpec(weight=0.5))(ours, LABELS).backward()
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


def test_cross_entropy_ignores_nothing() -> None:
    logits = _logits(1.0)[:8]
    torch.testing.assert_close(make_objective(CrossEntropySpec())(logits, LABELS), F.cross_entropy(logits, LABELS))
