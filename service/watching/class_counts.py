"""Images by predicted class and decision, of models whose classes are few enough for labels."""

from collections.abc import Sequence

from service.engine_protocol import Verdict

MOST_CLASSES = 100


class ClassCounts:
    """Counts of each class, as [in distribution, ood]; none of a model with more than MOST_CLASSES."""

    def __init__(self, classes: int) -> None:
        self.by_class = [[0, 0] for _ in range(classes if classes <= MOST_CLASSES else 0)]

    def count(self, found: Sequence[Verdict]) -> None:
        """Count verdicts."""
        if self.by_class:
            for verdict in found:
                self.by_class[verdict.class_id][verdict.is_ood] += 1

    def add(self, counts: Sequence[Sequence[int]]) -> None:
        """Count what was counted elsewhere, of the same classes."""
        for mine, more in zip(self.by_class, counts, strict=True):
            mine[0] += more[0]
            mine[1] += more[1]
