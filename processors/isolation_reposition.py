"""Isolation and reposition attention (IR-Diffusion): several subjects stay apart, and stay themselves.

Idea. In self-attention two subjects of a picture see each other, and mix. Isolation: the positions of a subject read
those of the background and their own, and no other subject's. Reposition: they also read the picture that shows
that subject alone (its portrait, a row of the same batch), resampled to the size that it has in the scene. In
cross-attention they read the portrait's prompt beside the scene's.

What differs from the published code. No mask and no tensor of positions x positions: positions are sorted by subject,
and each group is one fused attention over what it may read (:mod:`t2ictl.grouped_attention`), at about the cost of
plain attention. Regions come from the user or, while the picture is made, from the words' own maps; no detector. Masks
are disjoint, portraits are not cut off at the bottom, Otsu's threshold is the correct one. A strength scales all of it.

Legend: ``B`` batch row, ``R`` rows of one scene, ``H`` head, ``N`` position, ``Q`` position of a subject, ``K`` text
position, ``D`` head width, ``Y`` ``X`` map rows and columns, ``T`` prompt token.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from t2ictl.attention import AttentionCall, Edit, Step
from t2ictl.casts import Cast, Regions
from t2ictl.concepts import ConceptMaps, Concepts
from t2ictl.controls import Control, Plan, PlanContext, Watch, register_control
from t2ictl.edits import Heads, fused, project_keys, split_heads
from t2ictl.errors import UnsupportedPipeline
from t2ictl.fields import setting, settings_class
from t2ictl.grouped_attention import Grouping, grouped_attention
from t2ictl.lanes import Lanes
from t2ictl.pinned_rows import PinnedRows
from t2ictl.places import Places
from t2ictl.reference_bank import Telling
from t2ictl.shown_pictures import ShownPictures
from t2ictl.sites import Site, select
from t2ictl.subject_groups import Aspect, Reading, isolated_groups, resampled_positions, subject_labels
from t2ictl.subjects import Subject
from t2ictl.windows import Window

__all__ = ["IsolationReposition", "published_reading_sites"]


def published_reading_sites(family: str, sites: Sequence[Site]) -> tuple[Site, ...]:
    """Self-attention layers that read portraits: SDXL's decoder without its first two, elsewhere the last six of 16."""
    layers = [site for site in sites if site.kind == "self"]
    if family == "sdxl":
        up = [site for site in layers if site.place == "up"]
        return tuple(up[2:] or up)
    return tuple(layers[-math.ceil(len(layers) * 6 / 16) :])


@register_control(
    "isolation_reposition",
    paper="He, Wang, Zhou, Cai, Chao, Yin, Yang: Improving Multi-Subject Consistency in Open-Domain Image Generation "
    "with Isolation and Reposition Attention (IR-Diffusion), 2024, arXiv 2411.19261",
)
@settings_class
class IsolationReposition(Control):
    """Keep the subjects of a picture apart, and let each read the picture that shows it alone (IR-Diffusion).

    Position ``p`` of subject ``s`` reads the keys of background and ``s`` alone, and, where it does not drop out, those
    of its portrait with ``ref_strength`` added to their logits: one softmax over all of them. Cross-attention there is
    ``(1 - cross) CA(Q, scene) + cross CA(Q, portrait's prompt)``.

    Args:
        subjects: who has a portrait. Its prompt must be one of the call (but for ``"latent"``); with an ``image`` the
            portrait's row shows that picture, noised as far as the schedule has come. Without subjects, concepts are
            only kept apart.
        concepts: who is kept apart; empty for the subjects that a prompt names, or, without subjects, all its objects.
        layout: where they are; for all prompts or one list for each. Those without a region are where their words look.
        strength: 0 is the untouched model, 1 all of it; in between isolation, reading and text are scaled.
        isolation: 1: subjects do not see each other; below, with logits lowered by ``log(1 - isolation)``.
        reposition: ``"resample"``: the portrait's positions, resampled to the size in the scene (as published);
            ``"latent"``: the first picture of each prompt is a composite with every subject where the scene wants it,
            and the others read it there, position for position; it needs ``image`` and regions; ``"off"``: none.
        aspect: resampled to the whole box (``"stretch"``, as published) or with one scale for both sides (``"fit"``).
        ref_strength: added to the logits of the portrait's keys.
        ref_dropout: share of a subject's positions that do not read the portrait in a step, drawn anew for each.
        cross: weight of the portrait's prompt in cross-attention.
        branch: both sides of the guidance, or the conditional one.
        memory: weight of earlier maps in the mean that says where subjects are.
        window: part of the schedule in which it acts.
        sites: self-attention layers in which subjects are kept apart; empty for all.
        ref_sites: those in which portraits are read; empty for the published ones.
        seed: of the draws of ``ref_dropout``, and of the noise of given pictures.

    Example:
        >>> cat = Subject(name="cat", prompt="a photo of a cat")
        >>> IsolationReposition(subjects=(cat,)).ref_dropout
        0.5

    Reference:
        He et al., "Improving Multi-Subject Consistency in Open-Domain Image Generation with Isolation and Reposition
        Attention", 2024, arXiv 2411.19261.
    """

    subjects: tuple[Subject, ...] = setting(default=(), help="who has a portrait in the batch")
    concepts: Concepts = setting(default=(), help="who is kept apart; empty: the subjects, or all objects")
    layout: Regions = setting(default=(), help="where they are; others: where their words look")
    strength: float = setting(default=1.0, help="0 is the untouched model, 1 all of it", low=0.0, high=1.0)
    isolation: float = setting(default=1.0, help="1: subjects do not see each other", low=0.0, high=1.0)
    reposition: Literal["resample", "latent", "off"] = setting(default="resample", help="how portraits are read")
    aspect: Aspect = setting(default="stretch", help="resampled to the whole box, or with one scale")
    ref_strength: float = setting(default=0.0, help="added to the logits of the portrait's keys", low=-10.0, high=10.0)
    ref_dropout: float = setting(default=0.5, help="share of positions that do not read, in a step", low=0.0, high=1.0)
    cross: float = setting(default=0.9, help="weight of the portrait's prompt in cross-attention", low=0.0, high=1.0)
    branch: Literal["both", "cond"] = setting(default="both", help="which side of the guidance")
    memory: float = setting(default=0.5, help="weight of earlier maps in where subjects are", low=0.0, high=0.99)
    window: Window = setting(default=Window(), help="part of the schedule in which it acts")
    sites: tuple[str, ...] = setting(default=(), help="layers that keep subjects apart; empty: every self-attention")
    ref_sites: tuple[str, ...] = setting(default=(), help="layers that read portraits; empty: the published ones")
    seed: int = setting(default=0, help="seed of the dropout, and of the noise of given pictures", low=0)

    has_losses = False

    def plan(self, context: PlanContext) -> Plan:
        """Find the subjects of each picture, and say who reads what at which layers."""
        return self.plan_within(context, None)

    def plan_within(self, context: PlanContext, telling: Telling | None) -> Plan:
        """Make the plan of a call that may be a part of a story, whose portraits other parts read too.

        Args:
            context: the pipeline call.
            telling: what it knows of the story; None for a call of its own.

        Returns:
            The plan.
        """
        if self.strength == 0:
            return Plan()
        texts = tuple(prompt.text.strip() for prompt in context.prompts)
        shown_by = {subject.name: subject.prompt.strip() for subject in self.subjects}
        cast = Cast.of(
            self.subjects,
            self.concepts,
            self.layout,
            context,
            control=self.name,
            composed=self.reposition == "latent",
            absent=() if telling is None else telling.absent(texts, shown_by),
        )
        keeps = telling is not None and telling.bank is not None
        if not cast.scenes and not keeps:
            return Plan()
        adapter = context.adapter
        layers = [site for site in adapter.sites if site.kind == "self"]
        apart = select(layers, self.sites or "self")
        reading = select(layers, self.ref_sites) if self.ref_sites else published_reading_sites(adapter.family, layers)
        reading = reading if self.reposition != "off" else ()
        maps = ConceptMaps.of(context, cast.rows, (), "gaussian", "none")
        shown, places = ShownPictures(cast, context), Places(cast, maps, self.memory)
        if telling is not None:
            telling.places = places
        scenes = _Scenes(self, context, cast, places, frozenset(reading), shown, telling)
        owns: tuple[str, ...] = ("self.keys",)
        edits: list[tuple[tuple[Site, ...], Edit]] = [(tuple({*apart, *reading}), _Apart(scenes, frozenset(apart)))]
        if self.cross and (cast.composites or cast.absent):
            scenes.texts = told_texts(cast, context)
        if self.cross and any(each is not None for own in cast.portraits for each in own):
            edits.append((tuple(site for site in adapter.sites if site.kind == "cross"), _Told(scenes)))
            owns += ("cross.keys",)
        watches = (Watch(sites=maps.sites, take=scenes.look),) if scenes.places.needs_maps else ()
        pin = None
        if shown.by_image:
            names = {image: context.row_prompts[image].text for image in shown.by_image}
            pin = PinnedRows(adapter=adapter, pictures=shown.by_image, names=names, seed=self.seed)
            owns += ("latents.rows",)
        return Plan(edits=tuple(edits), owns=owns, watches=watches, pin=pin)


def told_texts(cast: Cast, context: PlanContext) -> dict[str, Tensor]:
    """Encode the prompts of the subjects, ``states_KC`` by prompt, where no row of the batch has them."""
    found = dict.fromkeys(each.prompt for own in cast.who for each in own if each is not None)
    return dict(zip(found, context.encoded(list(found)).rows, strict=True))


@dataclass
class _Scenes:
    """The scenes of one call: who reads what, at each map size and step."""

    settings: IsolationReposition
    context: PlanContext
    cast: Cast
    places: Places
    reading: frozenset[Site]
    shown: ShownPictures
    telling: Telling | None = None
    texts: dict[str, Tensor] = field(default_factory=dict)
    _labels: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    _groupings: dict[tuple[Any, ...], Grouping | None] = field(default_factory=dict)

    def look(self, maps_BYXT: Tensor, step: Step) -> None:
        """Learn where the subjects are."""
        self.places.take(maps_BYXT)

    def rows(self, lanes: Lanes, image: int) -> dict[str, int]:
        """The batch rows of a picture, by the side of the guidance."""
        roles = ("uncond", "cond") if self.settings.branch == "both" else ("cond",)
        behind = image - lanes.images
        if behind >= 0:  # a portrait that an earlier call showed: its rows lie behind those of the batch
            here = [role for role in roles if any(lane.role == role for lane in lanes.lanes)]
            return {role: len(lanes) + behind * len(here) + place for place, role in enumerate(here)}
        return {lane.role: row for row, lane in enumerate(lanes.lanes) if lane.image == image and lane.role in roles}

    def absent_states(self, call: AttentionCall, context_BKC: Tensor) -> Tensor | None:
        """``states_BNC`` of the rows behind the batch, or None if there are none."""
        bank, lanes = None if self.telling is None else self.telling.bank, call.lanes
        if bank is None or not self.cast.absent or call.site not in self.reading:
            return None
        rows = [
            bank.states(name, call, role)
            for number, name in enumerate(self.cast.absent)
            for role in self.rows(lanes, lanes.images + number)
        ]
        return torch.stack(rows).to(context_BKC)

    def keep(self, call: AttentionCall, context_BKC: Tensor) -> None:
        """Keep what this layer sees of the portraits, for later calls of the story."""
        bank = None if self.telling is None else self.telling.bank
        if bank is None or call.site not in self.reading:
            return
        for image in self.cast.shown:
            (subject,) = self.cast.who[image]
            assert subject is not None
            for role, row in self.rows(call.lanes, image).items():
                bank.keep(subject.name, call, role, context_BKC[row], self._portrait(image, call))

    def labels(self, image: int, size: tuple[int, int]) -> Tensor:
        """Which subject each position belongs to: ``labels_N``, from 1."""
        key = (self.places.version, image, size)
        if key not in self._labels:
            self._labels = {each: kept for each, kept in self._labels.items() if each[0] == self.places.version}
            pasted_NYX = self.shown.coverage(image, size)
            coverage_NYX = self.places.coverage(image, size) if pasted_NYX is None else pasted_NYX
            self._labels[key] = subject_labels(coverage_NYX).flatten()
        return self._labels[key]

    def grouping(self, call: AttentionCall, image: int, rows: dict[str, int], *, apart: bool) -> Grouping | None:
        """Who reads what in a picture, made once for all layers of one size in a step."""
        now, reads = (call.step.index, self.places.version), call.site in self.reading
        key = (now, image, call.size, tuple(rows.values()), apart, reads)
        if key not in self._groupings:
            self._groupings = {each: kept for each, kept in self._groupings.items() if each[0] == now}
            self._groupings[key] = self._grouping(call, image, rows, apart=apart, reads=reads)
        return self._groupings[key]

    def _grouping(
        self, call: AttentionCall, image: int, rows: dict[str, int], *, apart: bool, reads: bool
    ) -> Grouping | None:
        settings, labels_N = self.settings, self.labels(image, call.size)
        readings: dict[int, Reading] = {}
        drawn_N = self._drawn(call, image) if reads else labels_N
        for number, portrait in enumerate(self.cast.portraits[image], start=1) if reads else ():
            if portrait is None:
                continue
            there = self.rows(call.lanes, portrait)
            readings[number] = Reading(
                row=tuple(there[role] for role in rows),
                positions=self._positions(labels_N == number, number, portrait, call),
                strength=settings.ref_strength + math.log(settings.strength),
                reads=drawn_N,
            )
        isolation = settings.isolation * settings.strength if apart else 0.0
        found = isolated_groups(labels_N, readings, isolation)
        return None if found is None else found.to(self.context.adapter.device)

    def _positions(self, here_N: Tensor, number: int, portrait: int, call: AttentionCall) -> Tensor:
        """Positions of the portrait that a subject reads: resampled, or, in a composite, its own."""
        if portrait in self.cast.composites:
            covered_N = self.labels(portrait, call.size) == number
            return covered_N.nonzero().flatten()
        return resampled_positions(here_N.view(call.size), self._portrait(portrait, call), self.settings.aspect)

    def _portrait(self, image: int, call: AttentionCall) -> Tensor:
        """Where the subject is in its portrait; everywhere as long as nothing is known."""
        if image >= call.lanes.images:
            assert self.telling is not None and self.telling.bank is not None
            return self.telling.bank.inside(self.cast.absent[image - call.lanes.images], call)
        covered_YX = self.labels(image, call.size).view(call.size) > 0
        return covered_YX if covered_YX.any() else torch.ones_like(covered_YX)

    def _drawn(self, call: AttentionCall, image: int) -> Tensor:
        """Positions that read in this step: the same whatever else is in the batch."""
        texts = [prompt.text for prompt in self.context.row_prompts]
        alone = f"{texts[image]}|{texts[:image].count(texts[image])}"
        own = alone if self.telling is None else self.telling.names[image]
        name = f"{self.settings.seed}|{own}|{call.step.index}|{call.size}"
        dice = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return torch.rand(math.prod(call.size), generator=dice) >= self.settings.ref_dropout


@dataclass(eq=False)
class _Apart(Edit):
    """Self-attention: subjects do not see each other, and read their portraits."""

    scenes: _Scenes
    apart: frozenset[Site]

    def acts(self, step: Step) -> bool:
        """Inside the window only."""
        return self.scenes.settings.window.contains(step.index, step.total)

    def attend(self, call: AttentionCall, heads: Heads) -> Tensor:
        """Attend group by group in the scenes, as ever in all other rows."""
        if heads.mask is not None:
            raise UnsupportedPipeline(
                f"The self-attention of {call.site.address} has a mask.", "Keep this control's sites away from it."
            )
        self.scenes.keep(call, heads.context)
        states_BNC = self.scenes.absent_states(call, heads.context)
        if states_BNC is not None:
            k_BHND, v_BHND = projected(call.attention, states_BNC)
            heads = replace(heads, k=torch.cat([heads.k, k_BHND]), v=torch.cat([heads.v, v_BHND]))
        grouped: dict[tuple[int, ...], Grouping] = {}
        for image in self.scenes.cast.scenes:
            rows = self.scenes.rows(call.lanes, image)
            grouping = self.scenes.grouping(call, image, rows, apart=call.site in self.apart) if rows else None
            if grouping is not None:
                grouped[tuple(rows.values())] = grouping
        taken = {row for rows in grouped for row in rows}
        plain = [row for row in range(len(heads.q)) if row not in taken]
        out_BHND = torch.empty_like(heads.q)
        if plain:
            own = replace(heads, q=heads.q[plain], k=heads.k[plain], v=heads.v[plain])
            out_BHND[plain] = fused(call.attention, own)
        for own_rows, grouping in grouped.items():
            out_RHND = grouped_attention(heads.q, heads.k, heads.v, own_rows, grouping, call.attention.scale)
            out_BHND[list(own_rows)] = out_RHND
        return out_BHND


@dataclass(eq=False)
class _Told(Edit):
    """Cross-attention: the positions of a subject read the prompt of its portrait too, on the conditional side."""

    scenes: _Scenes

    def acts(self, step: Step) -> bool:
        """Inside the window only."""
        return self.scenes.settings.window.contains(step.index, step.total)

    def attend(self, call: AttentionCall, heads: Heads) -> Tensor:
        """Blend the two at the positions of subjects."""
        out_BHND, weight = fused(call.attention, heads), self.scenes.settings.cross * self.scenes.settings.strength
        cast = self.scenes.cast
        for image in cast.scenes:
            row = self.scenes.rows(call.lanes, image).get("cond")
            labels_N = self.scenes.labels(image, call.size)
            for number, portrait in enumerate(cast.portraits[image], start=1):
                places_Q = (labels_N == number).nonzero().flatten().to(out_BHND.device)
                is_told = portrait is not None or image in cast.composites
                subject = cast.who[image][number - 1]
                if row is None or subject is None or not is_told or not len(places_Q):
                    continue
                k_1HKD, v_1HKD, mask = self._text(call, heads, subject, portrait)
                q_1HQD = heads.q[row : row + 1].index_select(2, places_Q)
                own_HQD = out_BHND[row].index_select(1, places_Q)
                told_HQD = fused(call.attention, replace(heads, q=q_1HQD, k=k_1HKD, v=v_1HKD, mask=mask))[0]
                out_BHND = _with_positions(out_BHND, row, places_Q, torch.lerp(own_HQD, told_HQD, weight))
        return out_BHND

    def _text(
        self, call: AttentionCall, heads: Heads, subject: Subject, portrait: int | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and mask of a portrait's prompt: those of its row, or, where it has none, of its encoding."""
        if portrait is not None and portrait in self.scenes.cast.shown:
            there = self.scenes.rows(call.lanes, portrait)["cond"]
            own = slice(there, there + 1)
            return heads.k[own], heads.v[own], None if heads.mask is None else heads.mask[own]
        attention, states_1KC = call.attention, self.scenes.texts[subject.prompt][None].to(heads.context)
        if attention.norm_cross:
            states_1KC = attention.norm_encoder_hidden_states(states_1KC)
        return *projected(attention, states_1KC), None


def projected(attention: Attention, states_BKC: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer for given states: ``k_BHKD, v_BHKD``."""
    return project_keys(attention, states_BKC), split_heads(attention, attention.to_v(states_BKC))


def _with_positions(out_BHND: Tensor, row: int, places_Q: Tensor, values_HQD: Tensor) -> Tensor:
    """A copy with some positions of one row replaced."""
    own_HND = out_BHND[row].index_copy(1, places_Q, values_HQD)
    return torch.cat([out_BHND[:row], own_HND[None], out_BHND[row + 1 :]])
