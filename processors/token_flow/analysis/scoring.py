"""ImageCache of conditions, judged: what an analysis asks again and again.

Letters: ``S`` seed, ``Q`` question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from t2ictl.errors import BadSetting
from t2ictl.evaluation.judges import Judge, open_judge
from t2ictl.families import find_adapter
from t2ictl.generation import Request
from t2ictl.processors.token_flow.analysis.estimates import Scores
from t2ictl.processors.token_flow.analysis.images import Cell, ImageCache
from t2ictl.processors.token_flow.conditions import Conditions, Intervention, compose
from t2ictl.processors.token_flow.control import TokenFlow
from t2ictl.processors.token_flow.items import Item, bound_items
from t2ictl.processors.token_flow.readings import read_all
from t2ictl.session.checks import check_needs

__all__ = ["Scoring"]


class Scoring:
    """Makes conditions of one prompt, their images, and what a judge says of these.

    Args:
        pipe: the pipeline.
        request: prompt, steps, size, guidance.
        items: words or items; empty for all objects that the parser finds.
        judge: a judge or its name; None where nothing is judged.
        seeds: of all conditions.
        confirm: seeds on which repairs must hold.
        folder: where images are kept; None: nowhere.
        batch: images of one call.
        on_batch: gets the number of images done and to do; returns False to stop.

    Raises:
        UnsupportedPipeline: if rows cannot be put in the place of the prompt's, as on transformers.
        SpanNotFound: if an item is not in the prompt.
        BadSetting: for a judge that does not know what it will be asked, before any image is made.
    """

    def __init__(
        self,
        pipe: Any,
        request: Request,
        items: Sequence[Item | str],
        judge: str | Judge | None,
        *,
        seeds: Sequence[int],
        confirm: Sequence[int] = (),
        folder: Path | None = None,
        batch: int = 8,
        on_batch: Callable[[int, int], bool | None] | None = None,
    ) -> None:
        assert isinstance(request.prompt, str)
        adapter = find_adapter(pipe)
        check_needs([TokenFlow()], adapter)
        self.prompt = adapter.parse((request.prompt,), request.parser)
        self.items = bound_items(self.prompt, items, is_causal=adapter.text_is_causal)
        self.conditions = Conditions(self.prompt, lambda text: adapter.parse((text,), request.parser))
        self.encode = partial(adapter.encode, pipe.encode_prompt, {"device": adapter.device})
        self.seeds, self.confirm = tuple(seeds), tuple(confirm)
        asked = [each.item.asked for each in self.items]
        asked += [sense for each in self.items for sense in each.item.senses.values()]
        self.questions = tuple(dict.fromkeys(asked))
        self.judge = None if judge is None else open_judge(judge)
        if self.judge is not None:
            # Asked once before the work: a judge that does not know a word says so now.
            self._answers([Image.new("RGB", (request.width or 64, request.height or 64))])
        self.images = ImageCache(pipe, request.prompt, request, folder=folder, batch=batch, on_batch=on_batch)

    def cells(self, conditions: Sequence[Intervention], seeds: Sequence[int]) -> list[Cell]:
        """All conditions for all seeds, the seeds of a condition together."""
        length = len(self.prompt.encodings[0].ids)
        read = read_all((each for one in conditions for each in one.readings()), self.encode, length)
        rows = {each.name: compose(each, read, self.conditions.padding) for each in conditions}
        return [Cell(condition=name, row=row, seed=seed) for name, row in rows.items() for seed in seeds]

    def score(self, conditions: Sequence[Intervention], is_confirmation: bool = False) -> Scores:
        """Make and judge the images of conditions.

        Args:
            conditions: with different names; one that comes twice is made once.
            is_confirmation: whether on the seeds of confirmation.

        Returns:
            What the judge said.
        """
        cells = self.cells(conditions, self.confirm if is_confirmation else self.seeds)
        answers = self._answers(self.images.of(cells))
        names = list(dict.fromkeys(cell.condition for cell in cells))
        return Scores(self.questions, dict(zip(names, np.split(answers, len(names)), strict=True)))

    def _answers(self, images: Sequence[Image.Image]) -> np.ndarray:
        assert self.judge is not None
        answers = np.asarray(self.judge(images, self.questions), dtype=float)
        if answers.shape != (len(images), len(self.questions)) or not ((answers >= 0) & (answers <= 1)).all():
            raise BadSetting(
                f"The judge {self.judge.name!r} gave {answers.shape} values from {answers.min():g} to "
                f"{answers.max():g} for {len(images)} images and {len(self.questions)} things.",
                "A judge gives probabilities, one row an image and one column a thing.",
            )
        return answers
