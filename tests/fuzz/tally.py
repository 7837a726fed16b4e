"""How many examples ended in which way, printed, so that one sees that all ways were taken."""

from __future__ import annotations

import os
from collections import Counter

__all__ = ["IS_SEARCH", "Tally"]

#: Whether the many examples are others each time: a search for faults. Else they are always the same, so that a change
#: is not judged by a fault that was there before.
IS_SEARCH = bool(os.environ.get("T2ICTL_FUZZ_SEARCH"))


class Tally:
    """Counts of endings.

    Args:
        name: what is counted.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()

    def add(self, ending: object) -> None:
        """Count one.

        Args:
            ending: how it ended.
        """
        self.counts[str(ending)] += 1

    def share(self, ending: object) -> float:
        """Return the share of an ending.

        Args:
            ending: as it was added.

        Returns:
            From 0 to 1.
        """
        return self.counts[str(ending)] / max(1, self.counts.total())

    def show(self) -> None:
        """Print the counts."""
        found = ", ".join(f"{ending}: {count}" for ending, count in self.counts.most_common())
        print(f"{self.counts.total()} {self.name}: {found}")
