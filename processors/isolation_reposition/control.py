"""Isolation and reposition attention (IR-Diffusion): several subjects stay apart, and stay themselves.

Idea. In self-attention two subjects of an image see each other, and mix. Isolation: the positions of a subject read
those of the background and their own, and no other subject's. Reposition: they also read the image that shows
that subject alone (its portrait, a row of the same batch), resampled to the size that it has in the scene. In
cross-attention they read the portrait's prompt beside the scene's.

What differs from the published code. No mask and no tensor of positions x positions: positions are sorted by subject,
and each group is one fused attention over what it may read (:mod:`t2ictl.attention.grouped`), at about the cost of
plain attention. Regions come from the user or, while the image is made, from the words' own maps; no detector. Masks
are disjoint, portraits are not cut off at the bottom, Otsu's threshold is the correct one. A strength scales all of it.

Legend: ``B`` batch row, ``R`` rows of one scene, ``H`` head, ``N`` position, ``Q`` position of a subject, ``K`` text
position, ``D`` head width, ``Y`` ``X`` map rows and columns, ``T`` prompt token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Literal

from t2ictl.attention.edits import Edit
from t2ictl.attention.layers import Layer, select_layers
from t2ictl.controls.base import Control, Idle, MapHook, Plan, PlanContext
from t2ictl.controls.concepts import ConceptMaps, Concepts
from t2ictl.controls.registry import register_control
from t2ictl.errors import NeedsSession
from t2ictl.processors.isolation_reposition.by_order import ordered_processors
from t2ictl.processors.isolation_reposition.cast import Regions, SubjectAssignment
from t2ictl.processors.isolation_reposition.edits import Apart, Retold
from t2ictl.processors.isolation_reposition.groups import Aspect, Sampling
from t2ictl.processors.isolation_reposition.places import SubjectRegions
from t2ictl.processors.isolation_reposition.reference_images import ReferenceImages
from t2ictl.processors.isolation_reposition.reference_rows import ReferenceLatents
from t2ictl.processors.isolation_reposition.scene_state import SceneRules, Scenes
from t2ictl.processors.isolation_reposition.story_context import StoryContext
from t2ictl.processors.isolation_reposition.subjects import Subject
from t2ictl.processors.isolation_reposition.texts import SubjectText, subject_texts
from t2ictl.settings.fields import setting, settings_class
from t2ictl.settings.windows import Window

__all__ = ["IsolationReposition", "published_reading_layers"]


def published_reading_layers(family: str, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Self-attention layers that read portraits: SDXL's decoder without its first two, elsewhere the last six of 16."""
    layers = [layer for layer in layers if layer.kind == "self"]
    if family == "sdxl":
        up = [layer for layer in layers if layer.block == "up"]
        return tuple(up[2:] or up)
    return tuple(layers[-math.ceil(len(layers) * 6 / 16) :])


@register_control(
    "isolation_reposition",
    paper="He, Wang, Zhou, Cai, Chao, Yin, Yang: Improving Multi-Subject Consistency in Open-Domain Image Generation "
    "with Isolation and Reposition Attention (IR-Diffusion), 2024, arXiv 2411.19261",
    published={"sampling": "corners"},
    needs=("features",),
)
@settings_class
class IsolationReposition(Control):
    """Keep the subjects of an image apart, and let each read the image that shows it alone (IR-Diffusion).

    Position ``p`` of subject ``s`` reads the keys of background and ``s`` alone, and, where it does not drop out, those
    of its portrait with ``ref_strength`` added to their logits: one softmax over all of them. Cross-attention there is
    ``(1 - cross) CA(Q, scene) + cross CA(Q, portrait's prompt)``.

    It is for stories. In single images, where there is no portrait to read, it makes more wrong than right on the
    embedded model (-22.5 points of strictly right images, docs/evidence/defaults.md).

    Args:
        subjects: who has a portrait. Its prompt must be one of the call (but for ``"latent"``); with an ``image`` the
            portrait's row shows that image, noised as far as the schedule has come. Without subjects, concepts are
            only kept apart.
        concepts: who is kept apart; empty for the subjects that a prompt names, or, without subjects, all its objects.
        layout: where they are; for all prompts or one list for each. Those without a region are where their words look.
        strength: 0 is the untouched model, 1 all of it; in between isolation, reading and text are scaled.
        isolation: 1: subjects do not see each other; below, with logits lowered by ``log(1 - isolation)``.
        reposition: ``"resample"``: the portrait's positions, resampled to the size in the scene (as published);
            ``"latent"``: the first image of each prompt is a composite with every subject where the scene wants it,
            and the others read it there, position for position; it needs ``image`` and regions; ``"off"``: none.
        aspect: resampled to the whole box (``"stretch"``, as published) or with one scale for both sides (``"fit"``).
        sampling: resampled cells take what lies under their ``"centers"``, or their first ``"corners"`` (as published).
        ref_strength: added to the logits of the portrait's keys.
        ref_dropout: share of a subject's positions that do not read the portrait in a step, drawn anew for each.
        cross: weight of the portrait's prompt in cross-attention.
        subject_text: what ``cross`` is the weight of: ``"portrait_prompt"``, the portrait's prompt (published);
            ``"inserted"``, the scene's, with the portrait's phrase for the subject in the place of its name.
        branch: both sides of the guidance, or the conditional one.
        ema: weight of earlier maps in the mean that says where subjects are.
        window: part of the schedule in which it acts.
        layers: self-attention layers in which subjects are kept apart; empty for all.
        ref_layers: those in which portraits are read; empty for the published ones.
        seed: of the draws of ``ref_dropout``, and of the noise of given images.

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
    sampling: Sampling = setting(default="centers", help="what a resampled cell takes: at its center, or its corner")
    ref_strength: float = setting(default=0.0, help="added to the logits of the portrait's keys", low=-10.0, high=10.0)
    ref_dropout: float = setting(default=0.5, help="share of positions that do not read, in a step", low=0.0, high=1.0)
    cross: float = setting(default=0.9, help="weight of the portrait's prompt in cross-attention", low=0.0, high=1.0)
    subject_text: SubjectText = setting(default="portrait_prompt", help="what cross-attention reads of a portrait")
    branch: Literal["both", "cond"] = setting(default="both", help="which side of the guidance")
    ema: float = setting(default=0.5, help="weight of earlier maps in where subjects are", low=0.0, high=0.99)
    window: Window = setting(default=Window(), help="part of the schedule in which it acts")
    layers: tuple[str, ...] = setting(default=(), help="layers that keep subjects apart; empty: every self-attention")
    ref_layers: tuple[str, ...] = setting(default=(), help="layers that read portraits; empty: the published ones")
    seed: int = setting(default=0, help="seed of the dropout, and of the noise of given images", low=0)

    has_losses = False

    def plan(self, context: PlanContext) -> Plan:
        """Find the subjects of each image, and say who reads what at which layers."""
        return self.plan_within(context, None)

    def plan_within(self, context: PlanContext, story_context: StoryContext | None) -> Plan:
        """Make the plan of a call that may be a part of a story, whose portraits other parts read too.

        Args:
            context: the pipeline call.
            story_context: what it knows of the story; None for a call of its own.

        Returns:
            The plan.
        """
        if self.strength == 0:
            return Plan()
        texts = tuple(prompt.text.strip() for prompt in context.prompts)
        shown_by = {subject.name: subject.prompt.strip() for subject in self.subjects}
        assignment = SubjectAssignment.from_context(
            self.subjects,
            self.concepts,
            self.layout,
            context,
            control=self.name,
            composed=self.reposition == "latent",
            cached_subjects=() if story_context is None else story_context.absent(texts, shown_by),
        )
        keeps = story_context is not None and story_context.bank is not None
        idle = self._idle(assignment)
        if not assignment.scenes and not keeps:
            return Plan(idle=idle)
        adapter = context.adapter
        layers = [layer for layer in adapter.layers if layer.kind == "self"]
        apart = select_layers(layers, self.layers or "self")
        reading = (
            select_layers(layers, self.ref_layers)
            if self.ref_layers
            else published_reading_layers(adapter.family, layers)
        )
        reading = reading if self.reposition != "off" else ()
        maps = ConceptMaps.from_context(context, assignment.rows, (), "gaussian", "none")
        shown, places = ReferenceImages(assignment), SubjectRegions(assignment, maps, self.ema)
        if story_context is not None:
            story_context.places = places
        scenes = Scenes(self._rules(), context, assignment, places, frozenset(reading), shown, story_context)
        owns: tuple[str, ...] = ("self.keys",)
        edits: list[tuple[tuple[Layer, ...], Edit]] = [(tuple({*apart, *reading}), Apart(scenes, frozenset(apart)))]
        if self.cross:
            scenes.texts = subject_texts(assignment, context, self.subject_text)
        if self.cross and any(each is not None for own in assignment.portraits for each in own):
            edits.append((tuple(layer for layer in adapter.layers if layer.kind == "cross"), Retold(scenes)))
            owns += ("cross.keys",)
        map_hooks = (MapHook(layers=maps.layers, take=scenes.look),) if scenes.places.needs_maps else ()
        pin = None
        if shown.by_image:
            names = {image: context.row_prompts[image].text for image in shown.by_image}
            pin = ReferenceLatents(adapter=adapter, images=shown.by_image, names=names, seed=self.seed)
            owns += ("latents.rows",)
        return Plan(edits=tuple(edits), owns=owns, map_hooks=map_hooks, fixed_latents=pin, idle=idle)

    def _idle(self, assignment: SubjectAssignment) -> tuple[Idle, ...]:
        """Why images are left alone that are neither portraits nor composites, but scenes of their own."""
        reads = bool(self.cross) or (self.reposition != "off" and self.ref_dropout < 1)
        found: dict[bool, list[int]] = {}
        for image, (own, shown) in enumerate(zip(assignment.rows, assignment.portraits, strict=True)):
            is_shown = image in assignment.shown or image in assignment.composites
            is_read = reads and any(each is not None for each in shown)
            if not is_shown and not is_read and not (len(own) > 1 and self.isolation):
                found.setdefault(len(own) > 1, []).append(image)
        reasons = {
            False: Idle(reason="there are no two subjects to keep apart", remedy="Name them in concepts=."),
            True: Idle(reason="its subjects may see each other, and read no portrait", remedy="Raise isolation."),
        }
        return tuple(replace(reasons[several], images=tuple(images)) for several, images in found.items())

    def _rules(self) -> SceneRules:
        """What attention layers need of these settings."""
        return SceneRules(**{each.name: getattr(self, each.name) for each in fields(SceneRules)})

    @classmethod
    def attn_processors(
        cls,
        pipe: Any,
        prompts: Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        images_per_prompt: int = 1,
        **settings: Any,
    ) -> dict[str, Any]:
        """Return plain attention processors that do the same without a session; every region has to be given.

        What drops out follows from how often a processor was called, so a second call of the pipeline draws anew:
        make new processors for the same image again.

        Args:
            pipe: a diffusers pipeline.
            prompts: the prompts that it will be called with, in their order: portraits and scenes.
            size: height and width of the images (pixels); None for the model's own.
            images_per_prompt: images of each prompt.
            **settings: the control's fields.

        Returns:
            A new dict for ``unet.set_attn_processor``, which empties the one that it is given.

        Raises:
            NeedsSession: for a window, given images or composites, or where somebody has no region.

        Example:
            >>> import t2ictl
            >>> from t2ictl.controls.layouts import Region
            >>> pipe = t2ictl.load("shapes")
            >>> sides = (Region(word="circle", box=(0, 0, 0.5, 1)), Region(word="star", box=(0.5, 0, 1, 1)))
            >>> before = pipe.unet.attn_processors
            >>> made = IsolationReposition.attn_processors(pipe, ["a circle and a star"], layout=sides)
            >>> pipe.unet.set_attn_processor(made)
            >>> image = pipe("a circle and a star", num_inference_steps=2).images[0]
            >>> pipe.unet.set_attn_processor(dict(before))
        """
        control = cls(**settings)
        if control.window != Window():
            raise NeedsSession("An attention processor does not see the step.", "Leave window, or use a session.")
        if control.reposition == "latent" or any(subject.image is not None for subject in control.subjects):
            raise NeedsSession(
                "A given image is put into the batch between the steps, where no attention processor reaches.",
                "Use a session: with t2ictl.controlled(pipe, [IsolationReposition(...)]): ...",
            )
        return ordered_processors(pipe, control, prompts, size=size, images_per_prompt=images_per_prompt)
