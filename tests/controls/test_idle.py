"""Controls with nothing to do: one warning each, before the first step, and an image bit-equal to the plain one."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.controls import (
    AttentionEdit,
    Control,
    Edit,
    Idle,
    LossControl,
    MapHook,
    NoiseSearch,
    Plan,
    StepSize,
    Window,
)
from t2ictl.errors import ControlIdle
from t2ictl.processors import (
    AttendAndExcite,
    AttentionSegregation,
    ContrastiveAttention,
    InitialNoise,
    IsolationReposition,
    LinguisticBinding,
    PredicatedDiffusion,
    SelfCrossGuidance,
    StructuredGuidance,
    TokenFlow,
    TokenMerging,
)
from tests.tiny import generator, run, scheduler, sd, sdxl

PROMPT = "a red cat and a blue dog"
BETWEEN = Window(start=0.3, stop=0.4)  # holds none of two steps


def told(pipe: Any, control: Any, prompt: Any, **call: Any) -> tuple[Tensor, list[str]]:
    """The image with a control, and what was said of controls with nothing to do."""
    call = {"steps": 2, **call}
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with t2ictl.controlled(pipe, [control]):
            image = run(pipe, prompt, **call)
    return image, [str(each.message) for each in found if each.category is ControlIdle]


def idle(control: Any, prompt: Any = PROMPT, pipe: Any = None, **call: Any) -> str:
    """What a control says that leaves all images as they are."""
    pipe = sd() if pipe is None else pipe
    image, messages = told(pipe, control, prompt, **call)
    assert torch.equal(image, run(pipe, prompt, **{"steps": 2, **call})), "it acts"
    (message,) = messages
    return message


def acts(control: Any, prompt: Any = PROMPT, pipe: Any = None, **call: Any) -> bool:
    """Whether a control changes the image, and says nothing."""
    pipe = sd() if pipe is None else pipe
    image, messages = told(pipe, control, prompt, **call)
    return not torch.equal(image, run(pipe, prompt, **{"steps": 2, **call})) and not messages


# -- as reported ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cls", [each for each in t2ictl.list_controls().values() if hasattr(each(), "window")], ids=lambda cls: cls.name
)
def test_a_window_that_holds_no_step(cls: Any) -> None:
    message = idle(cls(window=BETWEEN))
    assert message.startswith(f"{cls.name} does nothing for '{PROMPT}'")
    assert "its window from 0.3 to 0.4 does not hold any of the 2 evaluations of this call. Widen the window" in message


def test_a_binding_control_on_a_prompt_without_attributes() -> None:
    message = idle(LinguisticBinding(), "a cat and a dog")
    assert "no word of the prompt describes an object. Describe an object in the prompt" in message


def test_it_is_told_before_the_first_step_and_once_a_call() -> None:
    seen: list[int] = []

    def at(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(index)
        return tensors

    with warnings.catch_warnings():
        warnings.simplefilter("error", ControlIdle)
        with pytest.raises(ControlIdle, match="window"):
            with t2ictl.controlled(sd(), [AttendAndExcite(window=BETWEEN)]) as session:
                run(session.adapter.pipe, PROMPT, steps=2, callback_on_step_end=at)
    assert not seen and session.cost.forwards == session.cost.extra_forwards == 0


def test_two_controls_are_told_of_apart_and_one_that_acts_is_not_named() -> None:
    pipe = sd()
    rule = StepSize(scale=5.0)
    controls = [
        LinguisticBinding(step=rule),
        AttendAndExcite(step=rule),
        ContrastiveAttention(step=rule, window=BETWEEN),
    ]
    with pytest.warns(ControlIdle) as found:
        with t2ictl.controlled(pipe, controls):
            run(pipe, "a cat and a dog", steps=2)
    names = [str(each.message).split(" ")[0] for each in found if each.category is ControlIdle]
    assert names == ["linguistic_binding", "contrastive_attention"]


# -- of the same kind -------------------------------------------------------------------------------------------------


def test_in_a_batch_the_prompts_that_are_left_alone_are_named() -> None:
    pipe, prompts = sd(), ["a red cat", "a cat and a dog", "in white"]
    call: dict[str, Any] = {"num_images_per_prompt": 2, "steps": 2}
    noise = lambda: [generator(number) for number in range(6)]  # noqa: E731
    plain = run(pipe, prompts, generator=noise(), **call)
    image, (message,) = told(pipe, LinguisticBinding(), prompts, generator=noise(), **call)
    assert [torch.equal(one, other) for one, other in zip(image, plain, strict=True)] == [False] * 2 + [True] * 4
    assert "for 'a cat and a dog': no word of the prompt describes an object" in message
    assert "for 'in white': it found no objects in the prompt" in message and "'a red cat'" not in message


@pytest.mark.parametrize(
    ("control", "prompt"),
    [
        (AttentionSegregation(retention=0.0), "a cat"),
        (AttentionSegregation(segregation=0.0, retention=0.0), PROMPT),
        (SelfCrossGuidance(presence=0.0), "a cat"),
        (InitialNoise(presence=0.0), "a cat"),
        (ContrastiveAttention(previous_maps=False), "a cat and a dog"),
        (LinguisticBinding(positive=0.0, negative=0.0), PROMPT),
    ],
    ids=lambda each: getattr(each, "name", each),
)
def test_losses_that_compare_nothing(control: Any, prompt: str) -> None:
    assert "its losses are constant for the maps of" in idle(control, prompt)


def test_a_loss_that_compares_a_step_with_the_one_before_needs_two() -> None:
    lone = AttentionSegregation(concepts=("cat",))
    assert "its losses are constant for the maps of 'cat'" in idle(lone, steps=1)
    assert acts(lone, steps=2) and acts(replace(lone, regions_from="update"), steps=2)
    first = ContrastiveAttention(window=Window(stop=0.5))
    assert "constant" in idle(first, "a cat and a dog") and acts(replace(first, window=Window()), "a cat and a dog")


def test_conflicts_that_count_only_where_all_objects_are_present_are_not_taken_for_constant() -> None:
    for present in (0.1, 0.5, 0.9):
        _, messages = told(sd(), SelfCrossGuidance(presence=0.0, presence_threshold=present), PROMPT)
        assert not any("constant" in each for each in messages)


def test_what_moved_nothing_all_along_is_told_at_the_end() -> None:
    """No plan shows it: for this image all that is asked for holds already, and no gradient comes from it."""
    pipe, noise = t2ictl.load("shapes"), torch.Generator().manual_seed(0)
    with pytest.warns(ControlIdle, match="predicated_diffusion moved nothing in image 1: their losses") as found:
        with t2ictl.controlled(pipe, [PredicatedDiffusion()]) as session:
            pipe("a circle", generator=noise, num_inference_steps=2, output_type="latent")
    assert len(found) == 1 and session.trace and not any(entry.length.any() for entry in session.trace)


@pytest.mark.parametrize(
    "control",
    [
        AttendAndExcite(step=StepSize(scale=0.0), refinement=None),
        AttendAndExcite(step=StepSize(max_norm=0.0)),
        InitialNoise(search=NoiseSearch(lr=0.0)),
        TokenMerging(entropy_steps=0),
        TokenMerging(step={"scale": 0.0}),
    ],
    ids=lambda each: str(each)[:60],
)
def test_steps_that_lead_nowhere(control: Any) -> None:
    assert "does nothing" in idle(control)


@pytest.mark.parametrize("step", [StepSize(scale=0.0), StepSize(max_norm=0.0)])
def test_what_is_measured_need_not_move(step: StepSize) -> None:
    pipe = sd()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ControlIdle)
        with t2ictl.controlled(pipe, [], measure=[AttendAndExcite(step=step)]) as session:
            run(pipe, PROMPT, steps=2)
    assert session.measured


@pytest.mark.parametrize("name", ["heun", "kdpm2"])
def test_moves_that_the_scheduler_discards_are_told_of(name: str) -> None:
    """Of two steps there are three evaluations, and the sample of the second is thrown away."""
    pipe = sd()
    pipe.scheduler = scheduler(name, pipe)
    second = Window.from_steps(1, 2, total=3)
    assert "the scheduler discards the sample of every evaluation" in idle(AttendAndExcite(window=second), pipe=pipe)
    assert acts(AttendAndExcite(window=Window.from_steps(1, 3, total=3)), pipe=pipe)
    assert "its strength is 0" in idle(AttendAndExcite(window=second, strength=0.0), pipe=pipe)


def test_isolation_cannot_know_places_at_its_only_step() -> None:
    message = idle(IsolationReposition(), "a cat and a dog", steps=1)
    assert "it has nothing to do at the one evaluation of this call. Make more steps" in message
    sides = [{"word": "cat", "box": (0, 0, 0.5, 1)}, {"word": "dog", "box": (0.5, 0, 1, 1)}]
    assert acts(IsolationReposition(layout=tuple(sides)), "a cat and a dog", steps=1)
    assert "may see each other" in idle(IsolationReposition(isolation=0.0), "a cat and a dog")


def test_the_unconditional_side_where_there_is_none() -> None:
    side = StructuredGuidance(branch="uncond")
    assert "there is no negative prompt" in idle(side)
    assert "guidance is off" in idle(side, negative_prompt="a green car and a pink bird", guidance_scale=1.0)
    assert acts(side, negative_prompt="a green car and a pink bird")
    assert acts(StructuredGuidance(branch="both"), guidance_scale=1.0)


def test_words_that_have_read_nothing_before_them() -> None:
    assert "its items stand before the others" in idle(TokenFlow(items=("cat",)))
    assert acts(TokenFlow(items=("dog",))) and acts(TokenFlow(items=("cat",), how="masked"))
    assert "at the beginning of the prompt" in idle(StructuredGuidance(phrases=("a red cat",)))
    assert acts(StructuredGuidance(phrases=("blue dog",)))


def test_pooled_states_are_text_too() -> None:
    """Of SDXL they are used; the other family has none, and nothing would change."""
    assert acts(TokenFlow(pooled="empty"), "a cat", pipe=sdxl())
    assert "no text embedding of the prompt would change" in idle(TokenFlow(pooled="empty"), "a cat")


def test_a_wish_for_nothing_is_no_reason_to_warn() -> None:
    prompts, groups = [PROMPT, "a red cat"], ((), ({"noun": "cat", "members": ("red",)},))
    assert acts(TokenMerging(groups=groups, merge=True), prompts)
    assert acts(StructuredGuidance(phrases=((), ("cat",))), prompts)


def test_what_only_looks_on_is_told_of_too() -> None:
    pipe = sd()
    with pytest.warns(ControlIdle, match="linguistic_binding measures nothing for 'a cat'"):
        with t2ictl.controlled(pipe, measure=[LinguisticBinding()]) as session:
            run(pipe, "a cat", steps=2)
    assert session.measured == ()


def test_without_a_session_it_is_told_when_processors_and_embeddings_are_made() -> None:
    pipe = sd()
    with pytest.warns(ControlIdle, match="structured_guidance does nothing for 'a cat'"):
        made = StructuredGuidance.attn_processors(pipe, ["a cat"])
    assert made == pipe.unet.attn_processors
    with pytest.warns(ControlIdle, match="token_flow does nothing for 'a cat'"):
        embeds = TokenFlow.embeds(pipe, ["a cat"])["prompt_embeds"]
    assert torch.equal(embeds, pipe.encode_prompt("a cat", "cpu", 1, False)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ControlIdle)
        assert StructuredGuidance.attn_processors(pipe, [PROMPT]) != pipe.unet.attn_processors
        TokenFlow.embeds(pipe, [PROMPT])


# -- controls of one's own --------------------------------------------------------------------------------------------


class Own(Control):
    """A control whose plan is given."""

    name = "own"
    needs_words = False

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def plan(self, context: Any) -> Plan:
        return self._plan


class Late(Edit):
    """An edit that acts from the third step on."""

    def acts(self, step: Any) -> bool:
        return bool(step.index >= 2)

    def output(self, call: Any, out_BQC: Tensor) -> Tensor:
        return out_BQC * 0


def test_plans_of_ones_own() -> None:
    assert "own does nothing" in idle(Own(Plan()))
    reason = Idle(reason="the moon is full", remedy="Wait.")
    assert idle(Own(Plan(idle=(reason,)))).endswith(": the moon is full. Wait.")
    assert "it has nothing to do at any of the 2 evaluations" in idle(AttentionEdit("mid", Late()))
    assert acts(AttentionEdit("mid", Late()), steps=3)


def test_a_control_that_only_listens_does_what_it_says() -> None:
    pipe, seen = sd(), []

    class Listening(Own):
        def plan(self, context: Any) -> Plan:
            layers = tuple(layer for layer in context.adapter.layers if layer.kind == "cross")[:1]
            return Plan(map_hooks=(MapHook(layers=layers, take=lambda maps, step: seen.append(step.index)),))

    _, messages = told(pipe, Listening(Plan()), PROMPT)
    assert messages == [] and seen == [0, 1]


def test_a_loss_of_ones_own_is_never_tried() -> None:
    calls: list[Tensor] = []

    def larger(maps_BNYX: Tensor, mask_BN: Tensor) -> Tensor:
        calls.append(maps_BNYX)
        return -(maps_BNYX.mean((2, 3)) * mask_BN).sum(1)

    assert acts(LossControl(larger, concepts=("cat",), window=Window()), steps=3) and len(calls) == 3
    assert "its window" in idle(LossControl(larger, window=BETWEEN)) and len(calls) == 3
