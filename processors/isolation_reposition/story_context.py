"""What a call of the pipeline knows of the story that it is a part of."""

from __future__ import annotations

from dataclasses import dataclass

from t2ictl.processors.isolation_reposition.places import SubjectRegions
from t2ictl.processors.isolation_reposition.reference_bank import ReferenceBank

__all__ = ["StoryContext"]


@dataclass(kw_only=True)
class StoryContext:
    """What a call knows of the story that it is a part of.

    Args:
        names: one for each image of the call, the same however the story is cut into calls: what is drawn for a
            image is drawn by its name.
        bank: what earlier calls kept of portraits, and where this one keeps them; None if portraits are not read.
        places: where the subjects of this call are; set when its plan is made, and known at its end.
    """

    names: tuple[str, ...]
    bank: ReferenceBank | None = None
    places: SubjectRegions | None = None

    def absent(self, prompts: tuple[str, ...], subjects: dict[str, str]) -> tuple[str, ...]:
        """Names of the subjects whose portraits are in the bank and not in the call.

        Args:
            prompts: of the call.
            subjects: prompt of the portrait by name.

        Returns:
            The names, in the order of ``subjects``.
        """
        held = frozenset() if self.bank is None else self.bank.subjects
        return tuple(name for name, prompt in subjects.items() if name in held and prompt not in prompts)
