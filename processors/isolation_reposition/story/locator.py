"""Looking for subjects in images while these are made, and changing nothing.

Legend: ``N`` subject, ``Y`` ``X`` map rows and columns, ``T`` prompt token.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from t2ictl.controls.base import Control, MapHook, Plan, PlanContext
from t2ictl.controls.concepts import ConceptMaps
from t2ictl.controls.layouts import Region
from t2ictl.processors.isolation_reposition.cast import SubjectAssignment
from t2ictl.processors.isolation_reposition.places import SubjectRegions
from t2ictl.processors.isolation_reposition.subjects import subject_spans
from t2ictl.settings.windows import Step

__all__ = ["SubjectLocator"]


class SubjectLocator(Control):
    """Finds out where the subjects of each image are, by their words' maps; it is there for one call.

    Args:
        names: the subjects of each prompt.
        ema: weight of earlier maps in the mean, in [0, 1).
    """

    name = "lookout"
    paper = ""
    needs = frozenset({"maps"})
    has_losses = False

    def __init__(self, names: Sequence[Sequence[str]], memory: float) -> None:
        self._names, self._memory = names, memory
        self._places: SubjectRegions | None = None

    def plan(self, context: PlanContext) -> Plan:
        """MapHook the maps of the subjects' words."""
        batch = context.batch.only("cond").rows
        rows = tuple(subject_spans(context.prompts[row.prompt], self._names[row.prompt]) for row in batch)
        nobody = tuple((None,) * len(own) for own in rows)
        maps = ConceptMaps.from_context(context, rows, (), "gaussian", "none")
        self._places = places = SubjectRegions(SubjectAssignment(rows, nobody, nobody, nobody), maps, self._memory)

        def look(maps_BYXT: Tensor, step: Step) -> None:
            places.take(maps_BYXT)

        return Plan(map_hooks=(MapHook(layers=maps.layers, take=look),))

    def region(self, image: int, number: int) -> Region:
        """Return where a subject was found.

        Args:
            image: the image.
            number: the subject, in the order of ``names``.

        Returns:
            A region with a mask; for a subject that never was the strongest anywhere the cell where it was most so.
        """
        assert self._places is not None
        mask_YX = self._places.found(image, number)
        return Region(word=self._names[image][number], mask=tuple(map(tuple, mask_YX.int().tolist())))
