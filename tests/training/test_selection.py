import numpy as np
import pytest

from training.selection import ValidationScores, choose

HUNDRED = np.arange(100.0)  # the score of rank 95 is 5: what is at least 5 is accepted


def _scores(accepted: dict[str, float], error: float = 0.0) -> ValidationScores:
    """Outliers of which those percentages are accepted with 95 of the 100 validation images."""
    outliers = {kind: np.where(np.arange(200) < 2 * share, 5.0, 3.5) for kind, share in accepted.items()}
    return ValidationScores(HUNDRED, outliers, error)


def test_lowest_mean_fpr95_is_chosen_each_kind_counting_alike() -> None:
    mostly = ValidationScores(
        HUNDRED, {"noise": np.full(1000, 3.5), "jigsaw": np.array([5.0, 3.5])}
    )  # 0 % and 50 %, though of 1,002 outliers one is accepted
    choice = choose({"a": _scores({"noise": 30, "jigsaw": 30}), "b": mostly, "c": _scores({"noise": 40, "jigsaw": 0})})
    assert choice.chosen == "c"
    assert [choice.candidates[name].fpr95 for name in "abc"] == pytest.approx([30, 25, 20])
    assert choice.candidates["c"].fpr95_by_kind == pytest.approx({"noise": 40, "jigsaw": 0})


def test_ties_go_to_the_candidate_with_fewer_errors_then_to_the_first() -> None:
    alike = {"noise": 10.0}
    choice = choose({"a": _scores(alike, 0.2), "b": _scores(alike, 0.1), "c": _scores(alike, 0.1)})
    assert choice.chosen == "b"
    assert choice.candidates["a"].error == pytest.approx(20)
    worse = choose({"a": _scores({"noise": 11}, 0.0), "b": _scores(alike, 0.9)})
    assert worse.chosen == "b"


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ({}, "no candidates"),
        ({"a": ValidationScores(HUNDRED, {})}, r"a has validation outliers \(\)"),
        ({"a": _scores({"noise": 1}), "b": _scores({"jigsaw": 1})}, r"b has validation outliers \('jigsaw',\)"),
        ({"a": ValidationScores(HUNDRED, {"noise": np.array([np.nan])})}, "not finite"),
    ],
)
def test_choice_that_cannot_be_made_is_refused(candidates: dict[str, ValidationScores], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(candidates)
