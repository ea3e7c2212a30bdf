"""The paper's own figures, to stand beside ours."""

import tomllib
from functools import cache
from pathlib import Path

from model_store.frozen import Frozen, Percent

Triple = tuple[Percent, Percent, Percent]
"""FPR95, AUROC, AUPR, in percent."""


class PublishedMethod(Frozen):
    """A method's figures: the mean as printed, over the paper's six sets, and each of them."""

    mean: Triple
    test_error: Percent | None = None
    ood: dict[str, Triple]


class Published(Frozen):
    """Tables 2 and 4 to 6 by in-distribution set and method; Table 3, AUROC in [0, 1], by method and OOD set."""

    figures: dict[str, dict[str, PublishedMethod]]
    table3: dict[str, dict[str, float]]

    def method(self, in_distribution: str, method: str) -> PublishedMethod | None:
        """Return the paper's figures of a method, if it has any."""
        return self.figures.get(in_distribution, {}).get(method)


@cache
def read_published() -> Published:
    """Return the figures that come with the package."""
    return Published.model_validate(tomllib.loads((Path(__file__).parent / "published.toml").read_text()))
