"""Structured guidance on what users run: beside other controls, LoRA, placeholders, embeddings, other pipelines."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.models.attention_processor import XFormersAttnProcessor
from diffusers.utils import scale_lora_layers, unscale_lora_layers
from torch import Tensor

import t2ictl
from t2ictl.attention.edits import AttentionCall, Edit
from t2ictl.attention.layers import select_layers
from t2ictl.controls.base import Control, Plan, PlanContext
from t2ictl.errors import AmbiguousWord, ControlConflict, PromptUnknown, UnsupportedPipeline
from t2ictl.guidance.rules import StepSize
from t2ictl.guidance.text_objectives import EmbedStep
from t2ictl.processors import AttentionSegregation, StructuredGuidance, TokenMerging
from t2ictl.processors.token_merging.groups import WordGroup
from t2ictl.prompts.noun_phrases import noun_phrases
from t2ictl.settings.fields import settings_class
from t2ictl.settings.windows import Window
from tests import tiny
from tests.processors.structured_guidance.structured_cases import (
    NESTED,
    NONE,
    PHRASES,
    PROMPT,
    PROMPTS,
    Layer,
    Loop,
    SubjectRegions,
    controlled_run,
    encoded,
    heard_in,
    layers,
    noise,
    put,
    recipe,
    recipes,
)
from tests.session.pipeline_cases import PIPELINES, fuse, give_image_prompt, old_processors, slice_attention
from tests.tiny import run, sd, sdxl

pytestmark = pytest.mark.filterwarnings("ignore:structured_guidance does nothing:UserWarning")
BOTH: list[dict[str, Any]] = [{}, {"mode": "keys"}]
OWN: dict[str, Any] = {"phrases": PHRASES[0]}
both_modes = pytest.mark.parametrize("settings", BOTH, ids=str)


def check(pipe: Any, heard: list[Layer], settings: dict[str, Any], row: int = 1, **more: Any) -> None:
    """Each layer is the loop's on the very text rows that it got."""
    assert heard
    for each in heard:
        loop = Loop([recipe(pipe, PROMPT, row=each.context[row], **settings, **more)])
        torch.testing.assert_close(each.out, each.by(loop), rtol=0, atol=3e-6)
        assert (each.out[row] - each.plain[row]).abs().max() > 1e-3


# -- phrases that are found -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", ["all", "highest", "lowest"])
@pytest.mark.parametrize("build", [sd, sdxl])
def test_found_phrases_act_as_if_they_were_named(build: Any, levels: Any) -> None:
    pipe, named = build(), []
    for prompt in PROMPTS:
        found = [each for each in noun_phrases(prompt) if each.text != prompt]
        inner = [(one.start, one.end) for one in found for other in found if _holds(other, one)]
        keep = {
            "all": found,
            "lowest": [each for each in found if not any(_holds(each, other) for other in found)],
            "highest": [each for each in found if (each.start, each.end) not in inner],
        }[levels]
        named.append(tuple(each.text for each in keep))
    assert all(named[place] for place in (0, 2)) and not named[1]
    found_image = controlled_run(pipe, PROMPTS, {"phrases": (), "levels": levels})
    assert torch.equal(found_image, controlled_run(pipe, PROMPTS, {"phrases": tuple(named), "levels": "all"}))
    assert (found_image - run(pipe, PROMPTS, steps=2)).abs().max() > 0.01


def _holds(one: Any, other: Any) -> bool:
    return one is not other and one.start <= other.start and other.end <= one.end


def test_each_phrase_is_encoded_once_and_all_in_one_batch() -> None:
    """The phrases of three prompts, then the prompts, then the negative ones."""
    pipe, sizes = sdxl(), []
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        encoder.register_forward_pre_hook(
            lambda _, args, kwargs: sizes.append(len(args[0] if args else kwargs["input_ids"])), with_kwargs=True
        )
    prompts = [PROMPT, NESTED, "photo of a dog and a red circle"]
    controlled_run(pipe, prompts, {"phrases": (*PHRASES[::2], ("a dog", "a red circle"))}, negative_prompt=[NONE] * 3)
    assert sizes == [6, 6, 3, 3, 3, 3]
    sizes.clear()
    controlled_run(pipe, prompts, {"phrases": ((), (), ())}, negative_prompt=[NONE] * 3)
    assert sizes == [3] * 4
    sizes.clear()
    read = {"phrases": (*PHRASES[::2], ("a dog", "a red circle")), "positions": "prompt"}
    controlled_run(pipe, prompts, read, guidance_scale=1.0)  # one stands at two places in two prompts
    assert sizes == [8, 8, 3, 3]


# -- beside other controls --------------------------------------------------------------------------------------------


@both_modes
@pytest.mark.parametrize("first", [True, False])
def test_rows_that_move_are_followed(settings: dict[str, Any], first: bool) -> None:
    """Token merging moves rows at every step: each evaluation averages what they are then."""
    pipe, controls = sd(), [StructuredGuidance(**OWN, **settings)]
    rule = EmbedStep(scale=0.05, final_scale=1.0)
    controls.insert(int(first), TokenMerging(entropy_steps=2, thresholds=(0.0,), window=Window(), step=rule))  # type: ignore[arg-type]
    with layers(pipe) as heard, t2ictl.controlled(pipe, controls):
        run(pipe, PROMPT, steps=3)
    heard = [each for each in heard if len(each.out) == 2]
    per_step = heard[:: len(heard) // 3]
    assert len(per_step) == 3 and (per_step[0].context[1] - per_step[2].context[1]).abs().max() > 0.01
    check(pipe, heard, settings)


@both_modes
def test_a_merged_phrase_is_left_out_and_the_others_are_where_the_merge_put_them(settings: dict[str, Any]) -> None:
    # start photo of a [red circle] and a blue square end
    pipe = sd()
    merge = TokenMerging(
        merge=True, entropy_steps=0, binding_steps=0, groups=(WordGroup(noun="circle", members=("red",)),)
    )
    with pytest.warns(UserWarning, match="leaves out 'a red circle': words of it are merged"):
        heard = heard_in(pipe, PROMPT, OWN | settings, merge, steps=1)
    check(pipe, heard, settings, places={"a blue square": (6, 7, 8)})


@both_modes
@pytest.mark.parametrize("build", [sd, sdxl])
def test_gradients_of_segregation_go_through_the_edited_layers(build: Any, settings: dict[str, Any]) -> None:
    """As if the loops were the model's own processors: same losses, same moves, same images."""
    pipe, made = build(), []
    apart = AttentionSegregation(step=StepSize(scale=0.02, mode="normalized"))
    call: dict[str, Any] = {"steps": 2, "latents": noise(3), "num_images_per_prompt": 1}
    edit = StructuredGuidance(phrases=(PHRASES[0], (), PHRASES[2]), **settings)
    prompts = [PROMPT, "a bird and a cat", NESTED]
    for controls, processor in (([apart], None), ([edit, apart], None), ([apart], Loop(recipes(pipe, **settings)))):
        if processor is not None:
            put(pipe, processor)
        with t2ictl.controlled(pipe, controls) as session:
            image = run(pipe, prompts, **call)
        terms = torch.stack([each.total for each in session.trace])
        made.append((image, terms, torch.stack([each.length for each in session.trace])))
    for found, expected in zip(made[1], made[2], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert (made[1][1][0] - made[0][1][0])[[0, 2]].abs().min() > 1e-4  # our own first pass sees the edit


@both_modes
def test_no_graph_of_our_extra_passes_stays_alive(settings: dict[str, Any]) -> None:
    """What keys and values were projected from when a gradient was wanted is gone when the image's pass begins."""
    pipe, alive = sd(), []
    counts: list[tuple[int, int]] = []

    def keep(_: Any, args: tuple[Tensor]) -> None:
        if args[0].grad_fn is not None:
            alive.append(weakref.ref(args[0]))

    def look(*_: Any) -> None:
        if not torch.is_grad_enabled():
            gc.collect()
            counts.append((len(alive), sum(each() is not None for each in alive)))

    for name, module in pipe.unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.register_forward_pre_hook(keep)
    pipe.unet.conv_in.register_forward_pre_hook(look)
    moving = TokenMerging(entropy_steps=1, thresholds=(0.0,), window=Window())
    with t2ictl.controlled(pipe, [StructuredGuidance(**OWN, **settings), moving]):
        run(pipe, PROMPT, steps=2)
    assert counts[0][0] > 2 and [still for _, still in counts] == [0, 0]


@settings_class
class Weigher(Control):
    """A control that wants to see the attention weights."""

    name, families, needs_words = "weigher", ("sd", "sdxl"), False

    def plan(self, context: PlanContext) -> Plan:
        class Same(Edit):
            def weights(self, call: AttentionCall, weights_BHQK: Tensor) -> Tensor:
                return weights_BHQK

        return Plan(edits=((select_layers(context.adapter.layers, "cross"), Same()),))


def test_two_of_them_conflict_and_so_do_two_that_want_the_softmax() -> None:
    pipe, keys = sd(), StructuredGuidance(**OWN, mode="keys")
    for second in (StructuredGuidance(**OWN, strength=2.0), keys):
        with pytest.raises(ControlConflict, match="both set cross.values"):
            controlled_run(pipe, PROMPT, OWN, second)
    for controls in ([keys, Weigher()], [Weigher(), keys]):
        with pytest.raises(ControlConflict, match="want the softmax"), t2ictl.controlled(pipe, controls):
            run(pipe, PROMPT, steps=1)
    beside = controlled_run(pipe, PROMPT, OWN, Weigher())
    torch.testing.assert_close(beside, controlled_run(pipe, PROMPT, OWN), rtol=0, atol=1e-4)


# -- what hangs on the pipeline ---------------------------------------------------------------------------------------


@both_modes
@pytest.mark.parametrize("build", [sd, sdxl])
def test_switches_of_the_pipeline_change_rounding_only(build: Any, settings: dict[str, Any]) -> None:
    switches: tuple[Callable[[Any], None], ...] = (fuse, slice_attention, old_processors)
    expected = controlled_run(build(), PROMPTS, settings)
    for switch_on in switches:
        pipe = build()
        switch_on(pipe)
        torch.testing.assert_close(controlled_run(pipe, PROMPTS, settings), expected, rtol=0, atol=1e-4)
        pipe.unet.set_attn_processor(StructuredGuidance.attn_processors(pipe, PROMPTS, phrases=PHRASES, **settings))
        torch.testing.assert_close(run(pipe, PROMPTS, steps=2), expected, rtol=0, atol=1e-4)


def test_a_processor_whose_library_is_absent_is_not_called() -> None:
    pipe = sd()
    expected = controlled_run(pipe, PROMPTS, {})
    put(pipe, XFormersAttnProcessor())
    assert torch.equal(controlled_run(pipe, PROMPTS, {}), expected)


def test_an_image_prompt_is_refused_by_name() -> None:
    pipe = sd()
    call = give_image_prompt(pipe)
    plain = run(pipe, PROMPT, steps=1, **call)
    with pytest.raises(UnsupportedPipeline, match="IPAdapterAttnProcessor2_0.*unload_ip_adapter"):
        controlled_run(pipe, PROMPT, OWN, steps=1, **call)
    assert torch.equal(controlled_run(pipe, PROMPT, {"strength": 0.0}, steps=1, **call), plain)
    pipe.unet.set_attn_processor(StructuredGuidance.attn_processors(pipe, [PROMPT], **OWN))
    with pytest.raises(UnsupportedPipeline, match="IPAdapterAttnProcessor2_0"):
        run(pipe, PROMPT, steps=1, **call)


def test_the_scale_of_a_lora_of_the_text_encoder_reaches_the_phrases() -> None:
    from peft import LoraConfig

    pipe = sd()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        names = ["q_proj", "v_proj", "out_proj"]
        pipe.text_encoder.add_adapter(LoraConfig(r=2, target_modules=names, init_lora_weights=False))

    def scaled(pipe: Any, text: str, first: int = 1) -> Tensor:
        scale_lora_layers(pipe.text_encoder, 0.25)
        rows = encoded(pipe, text, first)
        unscale_lora_layers(pipe.text_encoder, 0.25)
        return rows

    assert (scaled(pipe, "a red circle") - encoded(pipe, "a red circle")).abs().max() > 0.1
    heard = heard_in(pipe, PROMPT, OWN, cross_attention_kwargs={"scale": 0.25})
    torch.testing.assert_close(heard[0].context[1], scaled(pipe, PROMPT))
    check(pipe, heard, {}, encode=scaled)


def test_skipped_layers_of_the_encoders_are_skipped_for_phrases_too() -> None:
    pipe = sdxl()
    skipping = functools.partial(encoded, skip=1)
    heard = heard_in(pipe, PROMPT, OWN, clip_skip=1)
    torch.testing.assert_close(heard[0].context[1], skipping(pipe, PROMPT))
    check(pipe, heard, {}, encode=skipping)


@both_modes
def test_a_placeholder_of_several_vectors_inside_a_phrase(settings: dict[str, Any]) -> None:
    # start photo of a red <toy> <toy>_1 and a blue dog end
    pipe, written = sd(), {"a red <toy>": "a red <toy> <toy>_1"}
    vectors = torch.randn(2, tiny.TEXT_WIDTH, generator=tiny.generator(5))
    pipe.load_textual_inversion({"<toy>": vectors}, token="<toy>")
    places: SubjectRegions = {"a red <toy>": (3, 4, 5, 6), "a blue dog": (8, 9, 10)}
    own = {"phrases": tuple(places)} | settings

    def spelled(pipe: Any, text: str, first: int) -> Tensor:
        return encoded(pipe, written.get(text, text), first)

    heard = heard_in(pipe, "photo of a red <toy> and a blue dog", own)
    check(pipe, heard, settings, places=places, encode=spelled)


def test_text_states_that_change_on_the_way_are_followed() -> None:
    pipe, cutoff = sd(), SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)

    def other(pipe: Any, index: int, timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": given["prompt_embeds"] * 0.9}

    def written(pipe: Any, index: int, timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        given["prompt_embeds"].mul_(0.9)
        return {}

    for callback, rows in ((other, [2, 2, 2]), (written, [2, 2, 2]), (cutoff, [2, 1, 1])):
        watched = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
        heard = heard_in(pipe, PROMPT, OWN, steps=3, **watched)
        own = len(heard) // 3
        assert [len(each.out) for each in heard[::own]] == rows
        for step in range(3):
            states = heard[step * own].context
            assert rows[step] == 1 or step == 0 or not torch.equal(states, heard[0].context)
            check(pipe, heard[step * own : (step + 1) * own], {}, row=rows[step] - 1)


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_of_the_families(name: str) -> None:
    pipe, made = PIPELINES[name](), []
    plain = run(pipe, PROMPT, steps=2)
    for settings in BOTH:
        made.append(controlled_run(pipe, PROMPT, OWN | settings))
        assert torch.isfinite(made[-1]).all() and (made[-1] - plain).abs().max() > 1e-4
    assert not torch.equal(made[0], made[1]) and torch.equal(run(pipe, PROMPT, steps=2), plain)


@both_modes
def test_a_refiner_with_one_encoder(settings: dict[str, Any]) -> None:
    more = {"projection_class_embeddings_input_dim": 5 * 8 + tiny.TEXT_WIDTH}
    parts = tiny.sdxl_img2img(cross_attention_dim=tiny.TEXT_WIDTH, **more).components
    parts |= {"text_encoder": None, "tokenizer": None}
    pipe = StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)

    def second(_: Any, text: str, first: int) -> Tensor:
        whole = SimpleNamespace(
            tokenizer=pipe.tokenizer_2,
            text_encoder=pipe.text_encoder_2,
            tokenizer_2=pipe.tokenizer_2,
            text_encoder_2=pipe.text_encoder_2,
        )
        return encoded(whole, text, first)[:, tiny.TEXT_WIDTH :]

    heard = heard_in(pipe, PROMPT, OWN | settings, steps=2, **tiny.inputs(pipe))
    check(pipe, heard, settings, encode=second)


# -- embeddings and second prompts ------------------------------------------------------------------------------------


def embeds(pipe: Any, prompt: Any) -> dict[str, Any]:
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    made = pipe.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    return dict(zip(names, made, strict=False))


@both_modes
@pytest.mark.parametrize("build", [sd, sdxl])
def test_embeddings_with_the_words_named_and_made_inside(build: Any, settings: dict[str, Any]) -> None:
    pipe, control = build(), StructuredGuidance(**OWN, **settings)
    expected = controlled_run(pipe, PROMPT, OWN | settings)
    given = embeds(pipe, PROMPT)
    with t2ictl.controlled(pipe, [control], prompt=PROMPT):
        torch.testing.assert_close(run(pipe, None, **given, steps=2), expected, rtol=0, atol=1e-5)
    with t2ictl.controlled(pipe, [control]):
        torch.testing.assert_close(run(pipe, None, **embeds(pipe, PROMPT), steps=2), expected, rtol=0, atol=1e-5)
        with pytest.raises(PromptUnknown, match="StructuredGuidance"):
            run(pipe, None, **given, steps=1)


def test_a_negative_prompt_that_came_as_embeddings_is_left_alone() -> None:
    pipe = sd()
    call = {"negative_prompt_embeds": embeds(pipe, "picture of a blue square and a red circle")["prompt_embeds"]}
    assert torch.equal(
        controlled_run(pipe, PROMPT, OWN | {"branch": "uncond"}, **call), run(pipe, PROMPT, steps=2, **call)
    )


def test_a_pipeline_without_its_text_encoders_is_named() -> None:
    for pipe in (sd(), sdxl()):
        given = embeds(pipe, PROMPT)
        for name in ("text_encoder", "text_encoder_2"):
            if hasattr(pipe, name):
                setattr(pipe, name, None)
        with t2ictl.controlled(pipe, [StructuredGuidance(**OWN)], prompt=PROMPT) as session:
            with pytest.raises(UnsupportedPipeline, match="no text encoder"):
                run(pipe, None, **given, steps=1)
        assert session.cost.forwards == 0


def test_a_second_prompt_may_differ_only_where_no_phrase_stands() -> None:
    pipe = sdxl()
    for second in ("a " + PROMPT, "photo of a blue square and a red circle", "photo of a cat"):
        with pytest.raises(AmbiguousWord):
            controlled_run(pipe, PROMPT, OWN, prompt_2=second)
    heard = heard_in(pipe, PROMPT, OWN, prompt_2="picture of a red circle and a blue square")
    plain = encoded(pipe, PROMPT)
    assert torch.equal(heard[0].context[1, :, :32], plain[:, :32])
    assert (heard[0].context[1, :, 32:] - plain[:, 32:]).abs().max() > 0.1
    check(pipe, heard, {})
