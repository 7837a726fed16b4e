"""One prompt under token merging: its groups, and what becomes of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from t2ictl.errors import AmbiguousWord
from t2ictl.processors.token_merging.groups import ResolvedGroup
from t2ictl.processors.token_merging.presets import PRESETS, Preset
from t2ictl.processors.token_merging.rows import Removal, RowMerging
from t2ictl.prompts.accessories import merged_text
from t2ictl.prompts.prompt import Prompt

__all__ = ["MergedPrompt"]


@dataclass(frozen=True, kw_only=True)
class MergedPrompt:
    """One prompt, its groups and what becomes of its rows.

    Args:
        prompt: as the user wrote it.
        shown: with its words where they are after the merge.
        groups: what is merged.
        rows: how.
        composites: the position of each composite; without a merge that of the noun.
        text: the prompt without members.
        preset: what fields that were left open mean.
    """

    prompt: Prompt
    shown: Prompt
    groups: tuple[ResolvedGroup, ...]
    rows: RowMerging
    composites: tuple[int, ...]
    text: str
    preset: Preset

    @classmethod
    def from_groups(
        cls,
        prompt: Prompt,
        groups: Sequence[ResolvedGroup],
        *,
        kind: Literal["auto", "attribute", "object"],
        merge: bool,
        removal: Removal,
    ) -> MergedPrompt:
        """Plan the merge of one prompt.

        Args:
            prompt: the prompt.
            groups: its groups.
            kind: of the prompt; ``"auto"``: ``"object"`` where an object has accessories.
            merge: whether rows are merged.
            removal: how rows leave.

        Returns:
            The prompt with its merge.

        Raises:
            AmbiguousWord: if two text encoders read prompts of unlike lengths.
        """
        if kind == "auto":
            kind = "object" if any(g.accessories for g in groups) else "attribute"
        ends = {each.end for each in prompt.encodings}
        if groups and len(ends) > 1:
            raise AmbiguousWord(
                f"The prompts of the two text encoders end at different positions: {sorted(ends)}.",
                "Use one prompt for both encoders.",
            )
        rows = RowMerging(
            groups=tuple(each.positions for each in groups) if merge else (),
            length=len(prompt.encodings[0].ids),
            end=prompt.encodings[0].end,
            removal=removal,
        )
        # Without a merge, the losses act on the noun's own row.
        composites = rows.composites if merge else tuple(each.positions.noun[0] for each in groups)
        moved = [rows.moved] * len(prompt.encodings)
        return cls(
            prompt=prompt,
            shown=prompt.merged_by([each.merge for each in groups], moved) if groups else prompt,
            groups=tuple(groups),
            rows=rows,
            composites=composites,
            text=prompt.as_written(merged_text(prompt.text, [each.words for each in groups])),
            preset=PRESETS[kind],
        )
