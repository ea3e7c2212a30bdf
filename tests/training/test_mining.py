import math

import pytest
import torch
from sklearn.cluster import KMeans
from torch.nn import functional as F

from model_store.networks import NetworkOutput
from training.losses import make_objective
from training.mining import hardest_of_clusters, kmeans, mined
from training.objective_spec import BalancedEnergySpec, EnergyBoundedSpec, OutlierExposureSpec, RankedExposureSpec


def _outliers(features: list[list[float]], negative_energies: list[float]) -> NetworkOutput:
    """Two equal logits c have negative energy c + ln 2."""
    logits = torch.tensor(negative_energies)[:, None].expand(-1, 2) - math.log(2)
    return NetworkOutput(logits=logits.contiguous(), features=torch.tensor(features))


# Three directions in the plane, at lengths that would cluster otherwise: right, up, down left.
FEATURES = [[1.0, 0.0], [0.1, 9.0], [40.0, 1.0], [-3.0, -3.0], [0.0, 0.2], [-0.5, -0.6], [8.0, -0.5]]
ENERGIES = [3.0, 5.0, 9.0, 1.0, 7.0, 2.0, 4.0]  # the most of each: rows 2, 4 and 5


def test_hardest_of_each_direction_is_chosen() -> None:
    found = hardest_of_clusters(_outliers(FEATURES, ENERGIES), 3)
    assert found.tolist() == [2, 4, 5]  # by energy, the lowest first


def test_as_many_clusters_as_outliers_choose_all_and_one_the_hardest() -> None:
    outliers = _outliers(FEATURES, ENERGIES)
    assert sorted(hardest_of_clusters(outliers, 7).tolist()) == list(range(7))
    assert hardest_of_clusters(outliers, 1).tolist() == [2]


def test_places_of_empty_clusters_go_to_the_hardest_left_over() -> None:
    """Two directions, four clusters: two of them are empty."""
    outliers = _outliers([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [5.0, 0.0]], [1.0, 3.0, 2.0, 0.0, 2.5])
    assert hardest_of_clusters(outliers, 4).tolist() == [1, 2, 4, 0]


def test_equal_energies_still_give_one_of_each_cluster() -> None:
    found = hardest_of_clusters(_outliers(FEATURES, [1.0] * 7), 3)
    directions = {0: "right", 1: "up", 2: "right", 3: "down", 4: "up", 5: "down", 6: "right"}
    assert {directions[row] for row in found.tolist()} == {"right", "up", "down"}


@pytest.mark.parametrize("clusters", [0, 8])
def test_impossible_number_of_clusters_is_refused(clusters: int) -> None:
    with pytest.raises(ValueError, match=rf"clusters is {clusters}; it must be in 1 to the 7 outliers"):
        hardest_of_clusters(_outliers(FEATURES, ENERGIES), clusters)


def test_kmeans_agrees_with_sklearn_on_separated_blobs() -> None:
    generator = torch.Generator().manual_seed(3)
    centres = F.normalize(torch.randn(12, 32, generator=generator))
    points = (centres[:, None] + 0.03 * torch.randn(12, 20, 32, generator=generator)).flatten(0, 1)
    points = points[torch.randperm(240, generator=generator)]
    found = kmeans(points, torch.randn(240, generator=generator), 12).numpy()
    expected = KMeans(12, n_init=5, random_state=0).fit_predict(points.numpy())
    assert len(set(zip(found.tolist(), expected.tolist(), strict=True))) == 12 == len(set(found.tolist()))


def test_kmeans_moves_its_centres() -> None:
    """The seeds are 10 and -10, and 0.5 is nearer to 10; then the centres are 6.5 and -3.25, and it is not."""
    points = torch.tensor([[10.0], [-10.0], [9.0], [0.5], [-1.0], [-1.0]])
    assert kmeans(points, torch.tensor([0.0, 1, 1, 1, 1, 1]), 2).tolist() == [0, 1, 0, 1, 1, 1]


def test_kmeans_draws_nothing() -> None:
    points = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = kmeans(points, points[:, 0], 9)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(kmeans(points, points[:, 0], 9), first)


LABELS = torch.tensor([0, 1])


def _batch() -> NetworkOutput:
    outliers = _outliers(FEATURES, ENERGIES)
    logits = torch.cat([torch.tensor([[9.0, 1.0], [2.0, 6.0]]), outliers.logits]).requires_grad_()
    return NetworkOutput(logits=logits, features=torch.cat([torch.ones(2, 2), outliers.features]).requires_grad_())


@pytest.mark.parametrize(
    "objective",
    [
        make_objective(EnergyBoundedSpec(margin_in=-23.0, margin_out=0.0)),
        make_objective(BalancedEnergySpec(margin_in=-23.0, margin_out=0.0), torch.tensor([1, 5])),
        make_objective(OutlierExposureSpec()),
        make_objective(RankedExposureSpec()),
    ],
)
def test_any_objective_sees_all_labelled_images_and_the_mined_outliers_alone(objective) -> None:
    batch, alone = _batch(), _batch()
    rows = torch.tensor([0, 1, 2 + 2, 2 + 4, 2 + 5])
    expected = objective(NetworkOutput(alone.logits[rows], alone.features[rows]), LABELS)
    loss = mined(objective, 3)(batch, LABELS)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(batch.logits.grad, alone.logits.grad)
    assert batch.features.grad is None or not batch.features.grad.any()  # the choice has no gradient


def test_outliers_that_are_not_chosen_get_no_gradient() -> None:
    batch = _batch()
    mined(make_objective(EnergyBoundedSpec(margin_in=-23.0, margin_out=0.0)), 3)(batch, LABELS).backward()
    assert batch.logits.grad is not None
    assert batch.logits.grad.any(dim=1).tolist() == [True, True, False, False, True, False, True, True, False]
