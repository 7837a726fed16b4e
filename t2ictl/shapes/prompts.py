"""Prompt suites made from the world; tuning and report suites cannot overlap.

Which suite a combination may appear in is decided by the hash that also decides what is
seen in training (:func:`t2ictl.shapes.world.split_of`), so the suites are apart by construction.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from t2ictl.errors import BadSetting
from t2ictl.shapes.captions import NAMED_SIZES, NAMED_TEXTURES, Expectation, Wanted
from t2ictl.shapes.world import UNNAMED_SIZE, UNNAMED_TEXTURE, Look, sample_looks, split_of

Kind = Literal["single", "pair", "triple", "texture", "size", "attributes"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_COUNT: dict[Kind, int] = {"single": 1, "pair": 2, "triple": 3, "texture": 1, "size": 1, "attributes": 2}
_STREAM = {"tune": 1, "report": 2}


def _ask(kind: Kind, looks: tuple[Look, ...], generator: np.random.Generator) -> tuple[Wanted, ...]:
    """Say of looks what the kind of prompt says: colors always, textures and sizes where asked."""
    wanted = tuple(Wanted(shape=look.shape, color=look.color) for look in looks)
    if kind in ("texture", "attributes"):
        wanted = tuple(replace(w, texture=str(generator.choice(NAMED_TEXTURES))) for w in wanted)
    if kind in ("size", "attributes"):
        wanted = tuple(replace(w, size=str(generator.choice(NAMED_SIZES))) for w in wanted)
    if kind == "attributes":
        # Each object keeps either its texture or its size, so that pairs stay readable.
        keeps = generator.random(len(wanted)) < 0.5
        wanted = tuple(
            replace(w, size=None) if keep else replace(w, texture=None) for w, keep in zip(wanted, keeps, strict=True)
        )
    return wanted


def _looks_of(wanted: tuple[Wanted, ...]) -> tuple[Look, ...]:
    """Give the looks that a request names, open attributes filled in, for the hash."""
    return tuple(
        Look(
            shape=w.shape,
            color=str(w.color),
            texture=w.texture or UNNAMED_TEXTURE,
            size=w.size or UNNAMED_SIZE,
        )
        for w in wanted
    )


def suite(kind: Kind, split: Literal["tune", "report"], count: int, seed: int = 0) -> tuple[Expectation, ...]:
    """Make a suite of different prompts.

    Args:
        kind: ``"single"``, ``"pair"`` and ``"triple"`` name colors; ``"texture"`` and ``"size"``
            are single objects with that attribute; ``"attributes"`` are pairs with one each.
        split: tuning prompts for choosing settings, report prompts for the final figures.
        count: how many; there are about 10 single, 60 texture and 250 pair prompts a split.
        seed: which of them, and their order.

    Returns:
        ``count`` expectations; ``.prompt`` is the text.

    Raises:
        BadSetting: an unknown kind or split, or fewer different prompts than asked for.

    Example:
        >>> [item.prompt for item in suite("pair", "tune", 2)] == [item.prompt for item in suite("pair", "tune", 2)]
        True
    """
    if kind not in KINDS or split not in _STREAM:
        raise BadSetting(f"There is no suite {kind!r} of split {split!r}.", f"Kinds: {', '.join(KINDS)}.")
    generator = np.random.default_rng([seed, KINDS.index(kind), _STREAM[split]])
    chosen: dict[str, Expectation] = {}
    for _ in range(200 * count + 2000):
        wanted = _ask(kind, sample_looks(_COUNT[kind], generator), generator)
        if split_of(_looks_of(wanted)) == split:
            item = Expectation(objects=wanted)
            chosen.setdefault(item.prompt, item)
        if len(chosen) == count:
            return tuple(chosen.values())
    raise BadSetting(f"There are only {len(chosen)} {kind} prompts in split {split!r}.", f"Ask for {len(chosen)}.")
