"""The record of attention maps that a session leaves behind, and what can be asked of it.

Legend: ``B`` image, ``P`` block, ``T`` prompt token, ``N`` word, ``Y`` ``X`` map rows and columns, ``S`` step.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from t2ictl.errors import BadSetting, NotRecorded
from t2ictl.maps.figures import heat_map, overlay
from t2ictl.maps.notebook import ShownInNotebooks
from t2ictl.maps.ops import head_mean, pair_overlap, resize_maps, spatial_distribution
from t2ictl.maps.packing import pack_maps
from t2ictl.maps.queries import RankedWord, rank_words, segment_maps, threshold_mask
from t2ictl.prompts.prompt import Prompt

__all__ = ["AttentionRecord"]


@dataclass(kw_only=True)
class AttentionRecord(ShownInNotebooks):
    """The attention maps of one pipeline call, asked for by word.

    The attention map of a word is the share of attention that each position of the image gives to the word. Values are
    probabilities on one scale for all words; nothing is stretched. In a notebook the record shows all of them.

    Args:
        prompts: the prompt of each image.
        columns: the token positions that were recorded.
        heads: number of attention heads behind each block.
        maps: for each block ``maps_SBTYX``; one entry along ``S`` if only the mean was kept.
        steps: number of evaluations recorded.
        kind: what a map is in joint attention (:class:`Recording`).
        masses: for each block ``masses_SB1YX``, how much of its attention each place gives to text, if it was recorded.

    Example:
        >>> import t2ictl
        >>> result = t2ictl.generate(t2ictl.load("shapes", device="cpu"), "a red circle", seed=1, steps=4, record=True)
        >>> result.record
        AttentionRecord(words=['a', 'red', 'circle'], blocks={'down': '16 x 16', 'up': '16 x 16'}, steps=4, images=1)
        >>> result.record.map("circle").shape
        torch.Size([16, 16])
    """

    prompts: tuple[Prompt, ...]
    columns: tuple[int, ...]
    heads: dict[str, int]
    maps: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    kind: str = "text"
    masses: dict[str, Tensor] = field(default_factory=dict)

    # -- what there is ----------------------------------------------------------------------

    def names(self, image: int = 0) -> list[str]:
        """List the recorded words of an image, in the order of its prompt; a repeated one as ``cat#2``.

        Args:
            image: which image of the call.

        Returns:
            Names that :meth:`map` takes.

        Raises:
            NotRecorded: if there is no such image.
        """
        names, seen, recorded = [], Counter[str](), set(self.columns)
        for span in self._prompt(image).words():
            word = span.text.lower()
            seen[word] += 1
            # Words that were cut off have no tokens; words at two positions in encoders side by side have no one map.
            if not span.is_ambiguous and span.is_read and set(span.tokens) <= recorded:
                names.append(word if seen[word] == 1 else f"{word}#{seen[word]}")
        return names

    def merged(self, image: int = 0) -> dict[str, str]:
        """List the words that a control merged into a phrase; they answer with the map of its one token.

        Args:
            image: which image of the call.

        Returns:
            The phrase by word.

        Raises:
            NotRecorded: if there is no such image.
        """
        prompt = self._prompt(image)
        return {name: phrase for name in self.names(image) if (phrase := prompt.find(name).merged)}

    @property
    def single_steps(self) -> int:
        """How many steps have maps of their own; 0 if only the mean over steps was kept."""
        is_kept = bool(self.maps) and all(len(maps) == self.steps for maps in self.maps.values())
        return self.steps if is_kept else 0

    @property
    def bytes(self) -> int:
        """Memory held by the maps."""
        return sum(maps.nbytes for maps in (*self.maps.values(), *self.masses.values()))

    def __repr__(self) -> str:
        words = list(dict.fromkeys(name for image in range(len(self.prompts)) for name in self.names(image)))
        blocks = {name: f"{maps.shape[-2]} x {maps.shape[-1]}" for name, maps in self.maps.items()}
        mean = "" if self.single_steps == self.steps else " (their mean)"
        kind = "" if self.kind == "text" else f", kind={self.kind!r}"
        shown = f"words={words}, blocks={blocks}, steps={self.steps}{mean}, images={len(self.prompts)}{kind}"
        return f"AttentionRecord({shown})"

    # -- maps -------------------------------------------------------------------------------

    def map(self, word: str, *, image: int = 0, block: str | None = None, step: int | None = None) -> Tensor:
        """Return the attention map of a word.

        A word of several tokens has the mean of their maps; one that a control merged into a phrase answers with the
        map of the phrase's one token, and a warning says so.

        Args:
            word: a word or phrase of the prompt; ``"cat#2"`` is the second one.
            image: which image of the call.
            block: ``"down"``, ``"mid"``, ``"up"``; ``"early"``, ``"middle"``, ``"late"`` of a transformer; recorded by
                size, ``"up@2"``; by layer, ``"transformer_blocks.7"``; None for the mean over all heads.
            step: one evaluation (negative from the end); None for the mean over all.

        Returns:
            ``map_YX``, float32 on the CPU, values in [0, 1].

        Raises:
            SpanNotFound: if the word is not in that image's prompt.
            NotRecorded: if that word, block, step or image was not recorded.
        """
        own = self._by_block(self._columns_of(word, image), image, block, self._steps(step))
        maps_SYX = head_mean(own, self.heads)
        return maps_SYX.mean(dim=0) if step is None else maps_SYX[0]

    def text_mass(self, *, image: int = 0, block: str | None = None, step: int | None = None) -> Tensor:
        """Return how much of its attention each place gives to text, where it attends to text and image alike.

        Args:
            image: which image of the call.
            block: as for :meth:`map`.
            step: as for :meth:`map`.

        Returns:
            ``mass_YX`` in [0, 1]; 1 everywhere in cross-attention.

        Raises:
            NotRecorded: without ``Recording(text_mass=True)``, or if that block, step or image was not recorded.
        """
        if not self.masses:
            raise NotRecorded("The attention to text as a whole was not recorded.", "Use Recording(text_mass=True).")
        self._prompt(image)
        own = self._by_block([[0]], image, block, self._steps(step), self.masses)
        masses_SYX = head_mean(own, self.heads)
        return masses_SYX.mean(dim=0) if step is None else masses_SYX[0]

    # -- questions --------------------------------------------------------------------------

    def at(
        self,
        x: float,
        y: float,
        *,
        words: Sequence[str] = (),
        image: int = 0,
        block: str | None = None,
        step: int | None = None,
    ) -> tuple[RankedWord, ...]:
        """Rank the words by the attention that they get at a position of the image.

        Args:
            x: from the left edge, fraction of the width, in [0, 1].
            y: from the upper edge, fraction of the height, in [0, 1].
            words: words to rank; empty for all that were recorded.
            image: which image of the call.
            block: as for :meth:`map`.
            step: as for :meth:`map`.

        Returns:
            The words by falling attention; none if none was recorded.

        Raises:
            BadSetting: if the position is outside of the image.
            SpanNotFound, NotRecorded: as :meth:`map` does.

        Example:
            >>> import t2ictl
            >>> pipe = t2ictl.load("shapes", device="cpu")
            >>> result = t2ictl.generate(pipe, "a red circle", seed=1, steps=4, record=True)
            >>> sorted(each.word for each in result.record.at(0.5, 0.5))
            ['a', 'circle', 'red']
        """
        words = words or self.names(image)
        return rank_words(words, self._maps_of(words, image, block, step), x, y)

    def mask(
        self,
        word: str,
        threshold: float | str = "otsu",
        *,
        image: int = 0,
        block: str | None = None,
        step: int | None = None,
    ) -> Tensor:
        """Return the region where a word acts, by a threshold on its attention map.

        Args:
            word: a word or phrase.
            threshold: a share of the map's maximum, in (0, 1); or ``"otsu"``, which divides the values into two
                classes.
            image: which image of the call.
            block: as for :meth:`map`.
            step: as for :meth:`map`.

        Returns:
            ``mask_YX``, boolean.

        Raises:
            BadSetting: if the threshold is out of range.
            SpanNotFound, NotRecorded: as :meth:`map` does.
        """
        return threshold_mask(self.map(word, image=image, block=block, step=step), threshold)

    def segment(
        self,
        words: Sequence[str],
        *,
        background: float | None = None,
        image: int = 0,
        block: str | None = None,
        step: int | None = None,
    ) -> Tensor:
        """Return for each position the word that acts there most.

        Maps are divided by their means first: a word with much attention everywhere does not win everywhere.

        Args:
            words: the words that compete.
            background: a position where no word has this many times its mean belongs to none; None: every position has
                a word.
            image: which image of the call.
            block: as for :meth:`map`.
            step: as for :meth:`map`.

        Returns:
            ``word_YX``, the number of the word in ``words``, -1 for none.

        Raises:
            BadSetting: if no words are given.
            SpanNotFound, NotRecorded: as :meth:`map` does.
        """
        if not words:
            raise BadSetting("No words compete.", "Name at least one.")
        return segment_maps(self._maps_of(words, image, block, step), background)

    def overlap(
        self, words: Sequence[str] = (), *, image: int = 0, block: str | None = None, step: int | None = None
    ) -> Tensor:
        """Return how much the maps of each two words share positions, whatever attention each word has in all.

        ``sum(min(a, b))`` of maps that sum to 1; a map without any attention counts as even.

        Args:
            words: words to compare; empty for all that were recorded.
            image: which image of the call.
            block: as for :meth:`map`.
            step: as for :meth:`map`.

        Returns:
            ``overlap_NN``, symmetric, in [0, 1]: 1 for the same positions, 0 for none in common.

        Raises:
            SpanNotFound, NotRecorded: as :meth:`map` does.
        """
        maps_NYX = self._maps_of(words or self.names(image), image, block, step)
        return 2 * pair_overlap(spatial_distribution(maps_NYX.double())).float()

    # -- for people -------------------------------------------------------------------------

    def plot(
        self,
        word: str,
        image: Image.Image | None = None,
        *,
        number: int = 0,
        block: str | None = None,
        step: int | None = None,
        top: float | None = None,
    ) -> Image.Image:
        """Draw the heat map of a word.

        Args:
            word: a word or phrase.
            image: what the map is laid over; None for the map alone.
            number: which image of the call the map belongs to.
            block: as for :meth:`map`.
            step: as for :meth:`map`.
            top: the value drawn brightest; None for the map's own maximum. With one value for several words a weak
                word is drawn weak.

        Returns:
            An RGB image of the size of ``image``; alone, 256 pixels on the longer side.

        Raises:
            SpanNotFound, NotRecorded: as :meth:`map` does.
        """
        map_YX = self.map(word, image=number, block=block, step=step)
        top = float(map_YX.max()) if top is None else top
        return heat_map(map_YX, top) if image is None else overlay(image, map_YX, top)

    def to_dict(self, words: Sequence[str] = (), *, image: int = 0) -> dict[str, Any]:
        """Return the maps of an image as plain JSON data: every word, block and step, on one scale and of one size.

        Args:
            words: which words; empty for all that were recorded.
            image: which image of the call.

        Returns:
            ``words``; ``merged`` (words that answer with the map of a phrase); ``blocks`` (the first one is all of
            them); ``kind`` (what a map is in joint attention); ``size`` (rows and columns of every map) and
            ``recorded_sizes`` (what they were for each block: smaller maps were enlarged); ``steps`` (0 if there is the
            mean alone); ``top`` (the largest value of the means over steps and blocks, for a scale that all maps
            share); ``scale`` and ``maps``: 16-bit values from 0 to ``scale``, little-endian, in base64, ordered word,
            block, step, row, column, where the first step is the mean over all; ``means`` of the maps, in the same
            order; ``colors`` of heat maps, from 0 to ``top``.

        Raises:
            SpanNotFound, NotRecorded: as :meth:`map` does, and if no word was recorded.
        """
        names = list(words) or self.names(image)
        if not names:
            raise NotRecorded("No word of this prompt was recorded.", "Use a prompt with words.")
        data = pack_maps(torch.stack([self._all_maps(name, image) for name in names]))
        sizes = [data["size"], *(list(maps.shape[-2:]) for maps in self.maps.values())]
        merged = {name: phrase for name in names if (phrase := self._prompt(image).find(name).merged)}
        blocks = ["all", *self.maps]
        return {"words": names, "merged": merged, "blocks": blocks, "kind": self.kind, "recorded_sizes": sizes, **data}

    def _all_maps(self, word: str, image: int) -> Tensor:
        """``maps_PSYX`` of one size: all blocks together, then each; the mean over steps, then each step if kept."""
        own = self._by_block(self._columns_of(word, image), image, None, slice(None))
        size = max((maps.shape[-2], maps.shape[-1]) for maps in own.values())
        resized = [resize_maps(maps_SYX[None], size)[0] for maps_SYX in own.values()]
        maps_PSYX = torch.stack([head_mean(own, self.heads), *resized])
        mean_P1YX = maps_PSYX.mean(dim=1, keepdim=True)
        return torch.cat([mean_P1YX, maps_PSYX], dim=1) if self.single_steps > 1 else mean_P1YX

    # -- from tokens and blocks to words ----------------------------------------------------

    def _prompt(self, image: int) -> Prompt:
        if not 0 <= image < len(self.prompts):
            raise NotRecorded(f"There is no image {image}.", f"This call made {len(self.prompts)}, counted from 0.")
        return self.prompts[image]

    def _columns_of(self, word: str, image: int) -> list[list[int]]:
        """Where the tokens of a word are among those that were recorded, for each segment of the text row."""
        span = self._prompt(image).find(word)
        if span.merged:
            warnings.warn(f"{word!r} was merged into {span.merged!r}: this is the map of the whole.", stacklevel=3)
        if not set(span.tokens) <= set(self.columns):
            raise NotRecorded(f"The word {word!r} was not recorded.", "Name it in Recording(words=...).")
        return [[self.columns.index(token) for token in tokens] for tokens in span.by_segment if tokens]

    def _maps_of(self, words: Sequence[str], image: int, block: str | None, step: int | None) -> Tensor:
        """``maps_NYX`` of words."""
        maps = [self.map(word, image=image, block=block, step=step) for word in words]
        return torch.stack(maps) if maps else torch.zeros(0, 1, 1)

    def _steps(self, step: int | None) -> slice:
        if step is None:
            return slice(None)
        if not self.single_steps:
            raise NotRecorded("Single steps were not recorded.", "Use Recording(per_step=True).")
        if not -self.steps <= step < self.steps:
            raise NotRecorded(f"There is no step {step}.", f"{self.steps} evaluations were recorded.")
        return slice(step % self.steps, step % self.steps + 1)

    def _by_block(
        self, columns: list[list[int]], image: int, block: str | None, steps: slice, maps: Any = None
    ) -> dict[str, Tensor]:
        """For each block ``maps_SYX``, the mean over tokens, and over segments. Of these alone: a record holds all."""
        maps = self.maps if maps is None else maps
        if not maps:
            raise NotRecorded("No evaluation of the denoiser was recorded.", "Call the pipeline to its end first.")
        if block is not None and block not in maps:
            raise NotRecorded(f"Nothing was recorded of the block {block!r}.", f"Recorded: {sorted(maps)}.")
        chosen = maps if block is None else {block: maps[block]}
        return {
            name: torch.stack([each[steps, image, own].float().mean(dim=1) for own in columns]).mean(dim=0).cpu()
            for name, each in chosen.items()
        }
