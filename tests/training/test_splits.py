import numpy as np
import pytest

from training.datasets import ImageSet
from training.errors import DataError
from training.splits import class_shares, split_calibration, split_validation


@pytest.mark.parametrize(
    ("counts", "rows", "shares"),
    [([5, 4, 1], 7, [3, 3, 1]), ([3, 3, 2], 4, [2, 1, 1]), ([2, 2], 0, [0, 0]), ([1, 3], 4, [1, 3])],
)
def test_what_rounding_leaves_goes_to_the_classes_that_lost_most_by_it(
    counts: list[int], rows: int, shares: list[int]
) -> None:
    """Of 7 from (5, 4, 1) 3.5, 2.8 and 0.7 are due: two are left, for 0.8 and 0.7. Of equals the first gets it."""
    assert class_shares(np.array(counts), rows).tolist() == shares


def test_calibration_split_is_stratified_disjoint_and_seeded(train_set: ImageSet) -> None:
    fit, held_out = split_calibration(train_set, 55, seed=3)
    assert sorted(np.bincount(held_out.labels)) == [5] * 5 + [6] * 5
    rows = {image.tobytes() for image in fit.images}
    assert len(fit) == 145
    assert not rows & {image.tobytes() for image in held_out.images}
    again = split_calibration(train_set, 55, seed=3)[1]
    np.testing.assert_array_equal(again.images, held_out.images)
    assert not np.array_equal(split_calibration(train_set, 55, seed=4)[1].images, held_out.images)


def test_calibration_split_holds_out_each_class_by_its_share(train_set: ImageSet) -> None:
    """A threshold set on other shares than those of what is sent has another rate of false flags."""
    uneven = train_set.subset(np.flatnonzero((train_set.labels != 3) | (np.cumsum(train_set.labels == 3) <= 4)))
    assert uneven.uneven_classes == (20, 20, 20, 4, *[20] * 6)
    fit, held_out = split_calibration(uneven, 46, seed=0)
    assert np.bincount(held_out.labels).tolist() == [5, 5, 5, 1, *[5] * 6]
    assert fit.uneven_classes == (15, 15, 15, 3, *[15] * 6)
    assert train_set.uneven_classes is None


def test_calibration_split_of_nothing_trains_on_all(train_set: ImageSet) -> None:
    fit, held_out = split_calibration(train_set, 0, seed=0)
    assert (len(fit), len(held_out)) == (200, 0)
    np.testing.assert_array_equal(fit.images, train_set.images)


def test_calibration_split_that_leaves_nothing_is_refused(train_set: ImageSet) -> None:
    with pytest.raises(DataError, match=r"20 images of class airplane.*calibration_images = 200"):
        split_calibration(train_set, 200, seed=0)


def test_validation_images_are_held_out_besides_the_calibration_images(train_set: ImageSet) -> None:
    fit, calibration = split_calibration(train_set, 50, seed=3)
    shown, validation = split_validation(fit, 30, seed=3)
    rows = [set(part.rows.tolist()) for part in (calibration, shown, validation)]
    assert [len(part) for part in rows] == [50, 120, 30]
    assert set.union(*rows) == set(range(200))
    assert np.bincount(validation.labels).tolist() == [3] * 10
    np.testing.assert_array_equal(split_validation(fit, 30, seed=3)[1].rows, validation.rows)
    assert not np.array_equal(split_validation(fit, 30, seed=4)[1].rows, validation.rows)
    np.testing.assert_array_equal(fit.without(validation).rows, shown.rows)
    np.testing.assert_array_equal(fit.without(validation).labels, shown.labels)
    with pytest.raises(DataError, match=r"holding out 15 of them \(validation_images = 150\) leaves none"):
        split_validation(fit, 150, seed=3)
