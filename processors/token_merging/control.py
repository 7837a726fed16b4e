"""Token merging (ToMe): an object and all that belongs to it become one composite token.

Idea. A causal text encoder lets meaning leak from word to word, and cross-attention then gives an attribute to
the wrong object. The rows of an object's words are summed into one row, and the others leave: what is one
token cannot come apart. The composite rows are then updated in the first steps, so that each gathers at one
place (entropy of its map) and predicts the noise that its whole phrase predicts (semantic binding).

What differs from the published code. Groups come from the prompt; substituted end tokens are mapped by the
position of the end token; the target of the semantic loss is predicted on the image's own latents, as in the
paper, all groups in one batch, and not on trajectories of their own; only composite rows move; the loss is
compared with its threshold before a row moves; thresholds are shares of the largest entropy, so they hold for
any size and number of objects. Linking words ("with a") leave without being added to the sum, where the paper
adds them; a group by hand may name them. Merge and semantic loss are off unless asked for (``merge=True,
semantic=3``): on the embedded model the entropy loss alone does best (docs/benchmarks.md).

Legend: ``B`` image, ``N`` or ``G`` group, ``K`` position of the text row, ``C`` channels, ``Y`` ``X`` map rows
and columns, ``T`` prompt token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from t2ictl.controls.base import Control, Idle, Plan, PlanContext
from t2ictl.controls.concepts import ConceptMaps, NormalizeOver
from t2ictl.controls.registry import register_control
from t2ictl.errors import BadSetting, NeedsSession
from t2ictl.families.text_states import Encode, PromptEmbeds
from t2ictl.guidance.rules import MOST_UPDATES
from t2ictl.guidance.text_objectives import EmbedLosses, EmbedObjective, EmbedStep, TextEdit, TextPasses
from t2ictl.losses.entropy import entropy_loss, mean_entropy_share
from t2ictl.losses.semantic_binding import semantic_binding_loss
from t2ictl.processors.token_merging.groups import WordGroups, resolve_groups, without_groups
from t2ictl.processors.token_merging.merged_prompt import MergedPrompt
from t2ictl.processors.token_merging.presets import Preset, published_layers
from t2ictl.processors.token_merging.rows import Removal, row_mask
from t2ictl.settings.fields import setting, settings_class
from t2ictl.settings.windows import Step, Window
from t2ictl.standalone.recorder import text_embeds

__all__ = ["TokenMerging"]

# Official code: the loss is 10000 times the mean square. In half precision a plain mean would have no gradient.
SEMANTIC_WEIGHT = 1e4
# Official code: attention is divided by one half before its tokens compete once more.
INNER_TEMPERATURE = 2.0
# Published schedules have 50 steps; targets are given for each of them.
PUBLISHED_STEPS = 50


@register_control(
    "token_merging",
    paper="Hu, Li, van de Weijer, Gao, Khan, Yang, Cheng, Wang, Wang: Token Merging for Training-Free Semantic "
    "Binding in Text-to-Image Synthesis, NeurIPS 2024, arXiv 2411.07132",
    published={
        "merge": True,
        "noun_weight": 1.1,
        "member_weight": 1.2,
        "removal": "zero",
        "binding_steps": 3,
        "step": EmbedStep(mode="raw", scale=3.0),
        "semantic_step": EmbedStep(mode="raw", scale=1.0, final_scale=1.0),
        "parity": True,
    },
    needs=("maps", "rows"),
)
@settings_class
class TokenMerging(Control):
    """Merge the words of each object into one token, and update it in the first steps (ToMe).

    ``c_k = noun_weight sum c(noun_k) + member_weight sum c(members_k)``; then, for each image,
    ``L_ent = sum_k H(A_k)`` and ``L_sem = sum_k |eps(z, c_k, t) - eps(z, C(phrase_k), t)|^2`` move the rows ``c_k``.

    Args:
        groups: the objects with what belongs to each; empty for all that the parser finds; or one list for each prompt.
        strength: 0 is the untouched model, 1 the whole merge; in between, rows and steps are scaled.
        prompt_kind: what fields that are left open mean: ``"attribute"`` (window 0.1, 4 entropy updates, own end
            tokens), ``"object"`` (0.14, 6, substituted end tokens), or ``"auto"``: by prompt, ``"object"`` where an
            object has accessories.
        merge: whether rows are merged, as in the paper; without, only the losses act, on the rows of the nouns.
        noun_weight: weight of the noun's rows (1 in the paper, 1.1 in the official code).
        member_weight: weight of the other rows (1 in the paper, 1.2 in the official code).
        removal: how member rows leave: ``"compact"`` (paper), ``"mask"``, or ``"zero"`` (official code).
        end_tokens: whether end and padding rows are those of the prompt without members.
        end_tokens_from: from which moment of the schedule on (fraction).
        entropy_steps: most entropy updates in a step; 0 for none; None for those of the kind.
        binding_steps: semantic-binding updates in a step (3 in the official code); 0 for none.
        thresholds: for each fiftieth of the schedule, the share of the largest entropy at which updates end; the last
            one holds for the rest. The official thresholds by default.
        stretch: stretch every map to the range 0 to 1 before its entropy is taken, as in the official code.
        step: how far rows move for the entropy loss.
        semantic_step: how far they move for the semantic loss.
        window: part of the schedule in which rows move; None for those of the kind.
        pooled: pooled text states of SDXL: of the whole prompt, of the prompt without members, or zero.
        layers: layer filter; empty for the published layers.
        parity: compute as the official code does: tokens compete once more (a softmax over half of their attention)
            before the entropy, which counts twice; an update is made before its loss may end them; the passes have
            pooled states of zero; end rows come from the same positions of the other prompt.

    Example:
        >>> TokenMerging(merge=True, binding_steps=3).removal  # the paper's method
        'compact'

    Reference:
        Hu et al., "Token Merging for Training-Free Semantic Binding in Text-to-Image Synthesis", NeurIPS 2024,
        arXiv 2411.07132.
    """

    groups: WordGroups = setting(default=(), help="objects with what belongs to each; empty: found in the prompt")
    strength: float = setting(default=1.0, help="0 is the untouched model, 1 the whole merge", low=0.0, high=1.0)
    prompt_kind: Literal["auto", "attribute", "object"] = setting(
        default="auto", help="what window, updates and end tokens that are left open mean"
    )
    merge: bool = setting(default=False, help="merge rows, as in the paper; without, only the losses act")
    noun_weight: float = setting(default=1.0, help="weight of the noun's rows in the sum", low=0.0, high=4.0)
    member_weight: float = setting(default=1.0, help="weight of the members' rows in the sum", low=0.0, high=4.0)
    removal: Removal = setting(default="compact", help="how member rows leave")
    end_tokens: Literal["auto", "on", "off"] = setting(default="auto", help="end rows of the prompt without members")
    end_tokens_from: float = setting(default=0.0, help="from which moment on (fraction)", low=0.0, high=1.0)
    entropy_steps: int | None = setting(
        default=None, help="most entropy updates in a step; 0: none; empty: those of the kind", low=0, high=MOST_UPDATES
    )
    binding_steps: int = setting(
        default=0, help="semantic-binding updates in a step (3 in the paper); 0: none", low=0, high=MOST_UPDATES
    )
    thresholds: tuple[float, ...] = setting(
        default=(0.866, 0.830, 0.793, 0.757, 0.739, 0.721, 0.703),
        help="share of the largest entropy at which updates end, for each fiftieth of the schedule",
    )
    stretch: bool = setting(default=True, help="stretch maps before the entropy, as in the official code")
    step: EmbedStep = setting(default=EmbedStep(), help="how far rows move for the entropy")
    semantic_step: EmbedStep = setting(
        default=EmbedStep(final_scale=1.0), help="how far rows move for the semantic loss"
    )
    window: Window | None = setting(
        default=None, help="part of the schedule in which rows move; empty: those of the kind"
    )
    pooled: Literal["keep", "merged", "zero"] = setting(default="keep", help="pooled text states of SDXL")
    layers: tuple[str, ...] = setting(default=(), help="layer filter; empty: the published layers")
    parity: bool = setting(default=False, help="compute exactly as the official code does")

    moves_words = True

    def plan(self, context: PlanContext) -> Plan:
        """Find the groups of each prompt, and say how its rows are merged and moved."""
        if self.strength == 0:
            return Plan()
        self._check_mask(context)
        found = resolve_groups(self.groups, context, control=self.name)
        idle = without_groups(self.groups, found, context)
        if not any(found):
            return Plan(idle=idle)
        prompts = [
            MergedPrompt.from_groups(*each, kind=self.prompt_kind, merge=self.merge, removal=self.removal)
            for each in zip(context.prompts, found, strict=True)
        ]
        state = _Merging(self, context, tuple(prompts))
        shown = tuple(each.shown for each in prompts) if self.merge else context.prompts
        objectives = state.objectives()
        if not self.merge and not objectives:
            off = Idle(reason="it merges nothing, and no loss moves a word", remedy="Set merge=True or entropy_steps.")
            return Plan(idle=(off,))
        weight_BK = torch.stack([each.rows.weight(self.strength) for each in state.images])
        return Plan(
            text=TextEdit(
                prompts=shown,
                rewrite=state.rewrite,
                weight=weight_BK if self.merge and self.removal == "mask" else None,
                during=state.during if self.merge and self.end_tokens_from > 0 else None,
                objectives=objectives,
            ),
            idle=idle,
        )

    def _check_mask(self, context: PlanContext) -> None:
        is_half = context.adapter.denoiser.dtype in (torch.float16, torch.bfloat16)
        if self.merge and self.removal == "mask" and self.strength < 1 and is_half:
            raise BadSetting(
                f"In half precision a masked row gets attention or none, not the part of strength {self.strength:g}.",
                "Use strength 1, removal='compact' or 'zero', or float32.",
            )

    @classmethod
    def embeds(cls, pipe: Any, prompts: Sequence[str], **settings: Any) -> dict[str, Tensor]:
        """Return merged embeddings for a call without a session: the merge, without the losses.

        Args:
            pipe: a diffusers pipeline.
            prompts: the prompts.
            **settings: the control's fields.

        Returns:
            Arguments for the pipeline: ``prompt_embeds``, and ``pooled_prompt_embeds`` where the family has them.

        Raises:
            NeedsSession: for ``removal="mask"`` and ``end_tokens_from``, which embeddings cannot carry.

        Example:
            >>> import t2ictl
            >>> pipe = t2ictl.load("shapes")
            >>> embeds = TokenMerging.embeds(pipe, ["a red circle and a blue square"])
            >>> image = pipe(**embeds, num_inference_steps=2).images[0]
        """
        control = cls(**{**settings, "merge": True, "entropy_steps": 0, "binding_steps": 0})
        if control.removal == "mask" or control.end_tokens_from > 0:
            raise NeedsSession(
                "Masked rows, and end tokens that change on the way, are not in the embeddings.",
                "Use removal='compact' or 'zero' and end_tokens_from=0, or a session.",
            )
        return text_embeds(pipe, control, prompts)


@dataclass
class _Merging:
    """The merge of one call: rewrites the rows, then measures the composites."""

    settings: TokenMerging
    context: PlanContext
    prompts: tuple[MergedPrompt, ...]
    _later: Tensor | None = None
    _anchors_GKC: Tensor | None = None
    _target: tuple[int, Tensor] | None = None

    def __post_init__(self) -> None:
        cond = self.context.batch.only("cond").rows
        self.images = tuple(self.prompts[entry.prompt] for entry in cond)
        self.image_G = torch.tensor([row for row, each in enumerate(self.images) for _ in each.groups])
        self.position_G = torch.tensor([place for each in self.images for place in each.composites])
        self.groups_B = torch.tensor([len(each.groups) for each in self.images])

    # -- the rows, once ---------------------------------------------------------------------

    def rewrite(self, states: PromptEmbeds, encode: Encode) -> PromptEmbeds:
        """Merge the rows of all images."""
        settings, embeds_BTC = self.settings, states.embeds.to(torch.promote_types(states.embeds.dtype, torch.float32))
        if settings.binding_steps:
            self._anchors_GKC = self._encoded([g.anchor for each in self.images for g in each.groups], encode).embeds
        if not settings.merge:
            return states
        needs_text = any(map(self._substitutes, self.images)) or settings.pooled == "merged"
        merged = self._encoded([each.text for each in self.images], encode) if needs_text else states
        early_BKC = self._rows(embeds_BTC, merged.embeds, is_late=False)
        if settings.end_tokens_from > 0:
            self._later = settings.strength * (self._rows(embeds_BTC, merged.embeds, is_late=True) - early_BKC)
        return PromptEmbeds(
            embeds=torch.lerp(embeds_BTC, early_BKC, settings.strength), pooled=self._pooled(states, merged)
        )

    def _pooled(self, states: PromptEmbeds, merged: PromptEmbeds) -> Tensor | None:
        """The pooled states; an image without groups keeps its own."""
        own_BC, policy = states.pooled, self.settings.pooled
        if own_BC is None or merged.pooled is None or policy == "keep":
            return own_BC
        exact_BC = own_BC.to(torch.promote_types(own_BC.dtype, torch.float32))
        other_BC = merged.pooled.to(exact_BC) if policy == "merged" else torch.zeros_like(exact_BC)
        made_BC = torch.lerp(exact_BC, other_BC, self.settings.strength)
        return torch.where((self.groups_B > 0).to(own_BC.device)[:, None], made_BC, exact_BC).to(own_BC.dtype)

    def during(self, step: Step) -> Tensor | None:
        """The end rows that come later."""
        return self._later if step.index / step.total >= self.settings.end_tokens_from else None

    def _rows(self, embeds_BTC: Tensor, merged_BKC: Tensor, *, is_late: bool) -> Tensor:
        settings = self.settings
        made = []
        for row, each in enumerate(self.images):
            has_come = is_late or settings.end_tokens_from == 0
            tail = (merged_BKC[row], self._end_of(each)) if has_come and self._substitutes(each) else None
            made.append(each.rows.rows(embeds_BTC[row], settings.noun_weight, settings.member_weight, tail))
        return torch.stack(made)

    def _substitutes(self, each: MergedPrompt) -> bool:
        wanted = each.preset.substitutes if self.settings.end_tokens == "auto" else self.settings.end_tokens == "on"
        return wanted and bool(each.groups)

    def _end_of(self, each: MergedPrompt) -> int:
        if self.settings.parity:
            return each.rows.end
        return self.context.adapter.parse((each.text,)).encodings[0].end

    def _encoded(self, texts: Sequence[str], encode: Encode) -> PromptEmbeds:
        """Encode texts, each once."""
        once = list(dict.fromkeys(texts))
        states, places = encode(once), [once.index(text) for text in texts]
        return PromptEmbeds(
            embeds=states.embeds[places], pooled=None if states.pooled is None else states.pooled[places]
        )

    # -- the losses -------------------------------------------------------------------------

    def objectives(self) -> tuple[EmbedObjective, ...]:
        """The losses that act, the semantic one first as in the official code."""
        settings, adapter = self.settings, self.context.adapter
        presets = [each.preset for each in self.images]
        cross = tuple(layer for layer in adapter.layers if layer.kind == "cross")
        tokens: NormalizeOver = "prompt_words" if settings.parity else "none"
        self._maps = ConceptMaps.from_context(
            self.context, self._spans(), self._layers(), "none", tokens, INNER_TEMPERATURE
        )
        most_B = torch.tensor([self._most(each) for each in presets])
        window = settings.window or Window(stop=max(each.window.stop for each in presets))
        rows_BK = row_mask([each.composites for each in self.images], self.images[0].rows.length)
        shared: dict[str, Any] = {
            "name": settings.name,
            "movable": rows_BK.to(adapter.device),
            "window": window,
            "strength": settings.strength,
        }
        found = []
        if settings.binding_steps:
            found.append(
                EmbedObjective(
                    layers=cross,
                    evaluate=self.semantic,
                    max_updates_B=torch.full((len(self.images),), settings.binding_steps),
                    step_size=settings.semantic_step,
                    **shared,
                )
            )
        if most_B.any():
            found.append(
                EmbedObjective(
                    layers=self._maps.layers,
                    evaluate=self.entropy,
                    max_updates_B=most_B,
                    step_size=settings.step,
                    decide_before_update=settings.parity,
                    zero_pooled=settings.parity,
                    **shared,
                )
            )
        return tuple(found)

    def entropy(self, passes: TextPasses, embeds_BTC: Tensor, step: Step) -> EmbedLosses:
        """Entropy of the composites' maps; an image is done when its share is under the target."""
        settings, mask_BN = self.settings, self._maps.table.mask_BN
        maps_BNYX = self._maps(passes.maps(self._maps.layers, embeds_BTC))
        share_B = mean_entropy_share(maps_BNYX.detach(), mask_BN, stretch=settings.stretch)
        place = min(int(step.index / step.total * PUBLISHED_STEPS + 1e-9), len(settings.thresholds) - 1)
        is_on_B = self._is_on(step).to(share_B.device)
        loss_B = entropy_loss(maps_BNYX, mask_BN, stretch=settings.stretch)
        one_B = torch.ones_like(share_B) * is_on_B
        done_B = (share_B < settings.thresholds[place]) | ~is_on_B
        return EmbedLosses(
            terms={"entropy": (2 if settings.parity else 1) * loss_B},
            done=done_B,
            forwards=one_B,
            backwards=one_B,
            rows=len(self.images),
        )

    def semantic(self, passes: TextPasses, embeds_BTC: Tensor, step: Step) -> EmbedLosses:
        """Distance of the noise under each composite alone from the noise under its phrase."""
        assert self._anchors_GKC is not None
        is_first = self._target is None or self._target[0] != step.index
        if is_first:
            with torch.no_grad():
                self._target = (step.index, passes.noise(self._anchors_GKC, self.image_G))
        assert self._target is not None
        lone_GKC = embeds_BTC[self.image_G.to(embeds_BTC.device), self.position_G.to(embeds_BTC.device)][:, None]
        predicted_GCYX = passes.noise(lone_GKC, self.image_G)
        loss_B = semantic_binding_loss(predicted_GCYX, self._target[1], self.image_G, len(self.images))
        is_on_B = self._is_on(step).to(loss_B.device)
        groups_B = self.groups_B.to(loss_B) * is_on_B
        return EmbedLosses(
            terms={"semantic": SEMANTIC_WEIGHT * loss_B},
            done=~is_on_B,
            forwards=groups_B * (2 if is_first else 1),
            backwards=groups_B,
            rows=len(self.image_G),
        )

    def _is_on(self, step: Step) -> Tensor:
        """Images that have groups and in whose window the step lies."""
        return torch.tensor([bool(each.groups) and self._window(each.preset).holds(step) for each in self.images])

    def _most(self, preset: Preset) -> int:
        return preset.entropy if self.settings.entropy_steps is None else self.settings.entropy_steps

    def _window(self, preset: Preset) -> Window:
        return self.settings.window or preset.window

    def _layers(self) -> tuple[str, ...]:
        adapter = self.context.adapter
        return self.settings.layers or published_layers(adapter.family, adapter.layers, adapter.semantic_stride)

    def _spans(self) -> tuple[tuple[Any, ...], ...]:
        return tuple(tuple(each.shown.span_at(*g.words.noun) for g in each.groups) for each in self.images)
