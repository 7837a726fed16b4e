"""A leak whose size is known: the text encoder is made to give a word the sense that an earlier word chooses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from t2ictl.shapes.captions import POLYSEME, SENSE_NEXT_TO

__all__ = ["planted_leak"]


@contextmanager
def planted_leak(pipe: Any, share: float) -> Iterator[None]:
    """Let the row of "bolt" take on the sense that an earlier shape chooses, as in the caption grammar.

    ``h(bolt) <- h(bolt) + share (h(sense) - h(bolt))``, where ``h(sense)`` is the row that "star" or "cross" has at the
    same place of the same prompt. Where the earlier word is hidden from the encoder nothing is added, as in an
    encoder that has learned this.

    Args:
        pipe: a pipeline of the embedded model; changed for the length of the block only.
        share: how much of the sense is planted, in [0, 1].

    Example:
        >>> import t2ictl
        >>> pipe = t2ictl.load("shapes", device="cpu")
        >>> with planted_leak(pipe, 1.0):
        ...     planted = pipe.encode_prompt("a circle and a bolt", "cpu", 1, False)[0]
        >>> meant = pipe.encode_prompt("a circle and a star", "cpu", 1, False)[0]
        >>> bool((planted[0, 5] == meant[0, 5]).all())
        True
    """
    tokenizer = pipe.tokenizer
    ids = {word: tokenizer(word).input_ids[1] for word in (POLYSEME, "circle", "ring", "square", "star", "cross")}
    # "triangle" has two tokens; its last one stands for it.
    chooses = {ids[word]: ids[SENSE_NEXT_TO[word]] for word in ("circle", "ring", "square")}
    chooses[tokenizer("triangle").input_ids[-2]] = ids[SENSE_NEXT_TO["triangle"]]
    is_inner = False

    def plant(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Replace rows of what the encoder gives."""
        nonlocal is_inner
        if is_inner:
            return None
        read_BK = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        seen = kwargs.get("attention_mask")
        meant_BK, places = _meant(read_BK, seen, ids[POLYSEME], chooses)
        if not places:
            return None
        is_inner = True
        try:
            with torch.no_grad():
                senses_BKC = module(meant_BK, **_rest(kwargs))[0]
        finally:
            is_inner = False
        embeds_BTC = output[0].clone()
        for row, place in places:
            embeds_BTC[row, place] = torch.lerp(embeds_BTC[row, place], senses_BKC[row, place], share)
        output.last_hidden_state = embeds_BTC
        return output

    hook = pipe.text_encoder.register_forward_hook(plant, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _rest(kwargs: dict[str, Any]) -> dict[str, Any]:
    """What else the encoder was called with; who hides words will hide them again."""
    return {name: value for name, value in kwargs.items() if name not in ("input_ids", "attention_mask")}


def _meant(
    read_BK: Tensor, seen: Tensor | None, polyseme: int, chooses: dict[int, int]
) -> tuple[Tensor, list[tuple[int, int]]]:
    """The ids with the chosen sense in the place of the word, and where that is."""
    meant_BK, places = read_BK.clone(), []
    for row, ids in enumerate(read_BK.tolist()):
        if polyseme not in ids:
            continue
        place = ids.index(polyseme)
        visible = [True] * len(ids) if seen is None else _visible(seen, row, place)
        choosing = [
            chooses[each] for each, shown in zip(ids[:place], visible, strict=False) if shown and each in chooses
        ]
        if choosing:
            meant_BK[row, place] = choosing[-1]
            places.append((row, place))
    return meant_BK, places


def _visible(seen: Tensor, row: int, place: int) -> list[bool]:
    """Which positions one position may read: by a mask of rows, or by one of pairs, which is added to scores."""
    shown: list[bool] = (seen[row].bool() if seen.ndim == 2 else seen[row, 0, place] == 0).tolist()
    return shown
