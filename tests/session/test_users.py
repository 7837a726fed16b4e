"""What users really run: each feature works in a session, or is refused by name. The table is in README.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

import t2ictl
from t2ictl.attention.edits import AttentionCall, Edit
from t2ictl.attention.layers import select_layers
from t2ictl.controls.base import Control, Plan, PlanContext
from t2ictl.errors import SpanNotFound, UnsupportedPipeline
from t2ictl.guidance.rules import Refinement, StepSize
from t2ictl.processors.attend_and_excite import AttendAndExcite
from t2ictl.processors.attention_segregation import AttentionSegregation
from t2ictl.settings.fields import settings_class
from tests import tiny
from tests.session.pipeline_cases import (
    add_lora,
    fuse,
    give_image_prompt,
    old_processors,
    sibling,
    slice_attention,
    state,
    unreached,
)
from tests.session.session_cases import PROMPT, THREE, distance, pipeline

MOVES = AttentionSegregation(step=StepSize(scale=0.05, mode="normalized"))


@settings_class
class Louder(Control):
    """A control that edits attention: doubles the result of every cross-attention layer."""

    name = "louder"
    families = ("sd", "sdxl")
    needs_words = False

    def plan(self, context: PlanContext) -> Plan:
        class Double(Edit):
            def output(self, call: AttentionCall, out_BQC: torch.Tensor) -> torch.Tensor:
                return out_BQC * 2

        return Plan(edits=((select_layers(context.adapter.layers, "cross"), Double()),))


def tried(pipe: Any, prompt: Any = PROMPT, **call: Any) -> torch.Tensor:
    """Make a call plainly, idle with a recording, and moved; look at all three; return the plain latents."""
    call = {"steps": 2} | call
    plain = tiny.run(pipe, prompt, **call)
    before = state(pipe)
    with t2ictl.controlled(pipe, record=True) as session:
        assert torch.equal(tiny.run(pipe, prompt, **call), plain)
    assert float(session.record.map("circle").sum()) > 0
    with t2ictl.controlled(pipe, [MOVES]) as session:
        moved = tiny.run(pipe, prompt, **call)
    assert session.cost.extra_forwards > 0
    assert 1e-3 < distance(moved.float(), plain.float()) < 1
    assert state(pipe) == before
    assert torch.equal(tiny.run(pipe, prompt, **call), plain)
    return plain


# -- options of the call ----------------------------------------------------------------------------------------------

# Options that change the image of an otherwise equal call, then those that change the schedule.
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("sdxl", {"clip_skip": 1}),
    ("sd", {"negative_prompt": "a green frog"}),
    ("sdxl", {"negative_prompt": "a green frog", "negative_prompt_2": "a bear"}),
    ("sd", {"guidance_rescale": 0.7}),
    ("sdxl", {"guidance_rescale": 0.7}),
    ("sd", {"eta": 0.5}),
    ("sdxl", {"original_size": (32, 64), "crops_coords_top_left": (4, 8)}),
    ("sd_controlnet", {"controlnet_conditioning_scale": 0.5, "control_guidance_end": 0.5}),
    ("sd_controlnet", {"guess_mode": True}),
    ("sd_lcm", {"guidance_scale": 4.0}),
]
SCHEDULES: list[tuple[str, dict[str, Any]]] = [
    ("sdxl", {"timesteps": [801, 401, 1]}),
    ("sdxl", {"sigmas": [14.0, 5.0, 1.0]}),
    ("sdxl", {"denoising_end": 0.6, "steps": 4}),
    ("sd_img2img", {"strength": 0.6, "steps": 4}),
]


def by_option(case: Any) -> str:
    return case if isinstance(case, str) else next(iter(case))


@pytest.mark.parametrize(("family", "option"), OPTIONS, ids=by_option)
def test_options_of_the_call(family: str, option: dict[str, Any]) -> None:
    pipe = pipeline(family)
    assert not torch.equal(tried(pipe, **option), tiny.run(pipe, PROMPT, steps=2))


@pytest.mark.parametrize(("family", "option"), SCHEDULES, ids=by_option)
def test_schedules_of_the_call(family: str, option: dict[str, Any]) -> None:
    tried(pipeline(family), **option)


def test_clip_skip_with_one_encoder() -> None:
    pipe = tiny.sd()
    # Stock code asks for ``text_encoder.text_model``, which transformers 5 has merged into the encoder.
    if not hasattr(pipe.text_encoder, "text_model"):
        pipe.text_encoder.__dict__["text_model"] = pipe.text_encoder
    assert not torch.equal(tried(pipe, clip_skip=1), tiny.run(pipe, PROMPT, steps=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precisions(dtype: torch.dtype) -> None:
    assert tried(tiny.sd(dtype=dtype)).dtype == dtype


def test_prompt_over_the_token_limit() -> None:
    pipe = pipeline("sd")
    text = PROMPT + " and a cat and a dog and a frog and a lion"  # 16 tokens hold the words up to the dog
    tried(pipe, text)
    with t2ictl.controlled(pipe, record=True) as session:
        tiny.run(pipe, text, steps=1)
    assert float(session.record.map("cat").sum()) > 0
    with pytest.raises(SpanNotFound, match="limit of 16 tokens"):
        session.record.map("lion")
    with unreached(pipe), pytest.raises(SpanNotFound, match="limit of 16 tokens"):
        with t2ictl.controlled(pipe, [AttentionSegregation(concepts=("cat", "lion"))]):
            tiny.run(pipe, text)


# -- callbacks --------------------------------------------------------------------------------------------------------


def test_callback_that_changes_latents_and_embeddings() -> None:
    pipe = pipeline("sd")
    seen: list[torch.Tensor] = []

    def callback(pipe: Any, index: int, timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        seen.append(given["latents"])
        return {"latents": given["latents"] * 0.9, "prompt_embeds": given["prompt_embeds"] * 1.1}

    names = ["latents", "prompt_embeds"]
    call = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names, "steps": 3}
    tried(pipe, **call)
    with t2ictl.controlled(pipe, [MOVES]):
        seen.clear()
        result = tiny.run(pipe, PROMPT, **call)
    assert torch.equal(result, seen[-1] * 0.9)


def test_guidance_switched_off_in_the_middle() -> None:
    """The callback of diffusers that drops the unconditional rows after some steps."""
    pipe = tiny.sd()
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    call = {"callback_on_step_end": cutoff, "callback_on_step_end_tensor_inputs": ["prompt_embeds"], "steps": 3}
    tried(pipe, **call)
    with t2ictl.controlled(pipe, [MOVES, Louder()], record=True) as session:
        tiny.run(pipe, PROMPT, **call)
    assert session.cost.forwards == 2 + 1 + 1
    assert session.cost.extra_forwards == 3
    assert session.record.steps == 3


def test_interrupt() -> None:
    pipe = pipeline("sd")

    def callback(pipe: Any, index: int, timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = index == 1
        return given

    plain = tried(pipe, callback_on_step_end=callback, steps=4)
    with t2ictl.controlled(pipe, [MOVES]) as session:
        stopped = tiny.run(pipe, PROMPT, callback_on_step_end=callback, steps=4)
        assert session.cost.forwards == 2 * 2
        assert not torch.equal(tiny.run(pipe, PROMPT, steps=4), stopped)  # the next call is whole again
    assert stopped.shape == plain.shape


# -- what hangs on the pipeline ---------------------------------------------------------------------------------------


def test_lora() -> None:
    pipe = tiny.sd()
    without = tiny.run(pipe, PROMPT, steps=2)
    add_lora(pipe)
    whole = tried(pipe)
    half = tried(pipe, cross_attention_kwargs={"scale": 0.5})
    assert distance(whole, without) > 0.01 and distance(half, whole) > 0.01
    # The session's own passes end early; the scale of the weights is taken back there too.
    scales = {name: dict(each.scaling) for name, each in pipe.unet.named_modules() if hasattr(each, "scaling")}
    with t2ictl.controlled(pipe, [MOVES]):
        tiny.run(pipe, PROMPT, steps=2, cross_attention_kwargs={"scale": 0.5})
    assert scales and all(dict(pipe.unet.get_submodule(name).scaling) == each for name, each in scales.items())
    pipe.unet.delete_adapters("default")
    assert torch.equal(tiny.run(pipe, PROMPT, steps=2), without)


def test_textual_inversion_of_several_vectors() -> None:
    pipe = tiny.sd()
    vectors = torch.randn(3, tiny.TEXT_WIDTH, generator=tiny.generator(5))
    pipe.load_textual_inversion({"<toy>": vectors}, token="<toy>")
    text = "a <toy> and a red circle"
    tried(pipe, text)
    with t2ictl.controlled(
        pipe, [AttentionSegregation(concepts=("<toy>", "circle"), step=MOVES.step)], record=True
    ) as session:
        moved = tiny.run(pipe, text, steps=2)
    prompt = session.record.prompts[0]
    assert prompt.find("<toy>").tokens == (2, 3, 4)
    assert pipe.tokenizer.convert_ids_to_tokens(prompt.encodings[0].ids)[8] == "circle</w>"
    assert prompt.find("circle").tokens == (8,)
    columns = [session.record.columns.index(token) for token in (2, 3, 4)]
    by_token = torch.stack(
        [session.record.maps[place][:, 0, columns] * session.record.heads[place] for place in session.record.maps]
    )
    by_hand = by_token.sum(dim=0).mean(dim=(0, 1)) / sum(session.record.heads.values())
    assert torch.allclose(session.record.map("<toy>"), by_hand, atol=1e-6)
    assert distance(moved, tiny.run(pipe, text, steps=2)) > 1e-3


def test_ip_adapter() -> None:
    pipe = tiny.sd()
    without = tiny.run(pipe, PROMPT, steps=2)
    call = give_image_prompt(pipe)
    assert any(isinstance(each, IPAdapterAttnProcessor2_0) for each in pipe.unet.attn_processors.values())
    weights = {id(each) for each in pipe.unet.parameters()}
    whole = tried(pipe, **call)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    masked = tried(pipe, **call, cross_attention_kwargs={"ip_adapter_masks": [mask]})
    assert distance(whole, without) > 0.01 and distance(masked, whole) > 0.01  # the mask arrives
    assert {id(each) for each in pipe.unet.parameters()} == weights
    with pytest.raises(UnsupportedPipeline, match="IPAdapterAttnProcessor2_0.*unload_ip_adapter"):
        with t2ictl.controlled(pipe, [Louder()]):
            tiny.run(pipe, PROMPT, steps=1, **call)
    assert torch.equal(tiny.run(pipe, PROMPT, steps=2, **call), whole)


def free_u(pipe: Any) -> None:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


def slice_and_tile_vae(pipe: Any) -> None:
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()


@pytest.mark.parametrize("build", [tiny.sd, tiny.sdxl])
@pytest.mark.parametrize("switch_on", [fuse, slice_attention, free_u, slice_and_tile_vae, old_processors])
def test_switches(build: Any, switch_on: Callable[[Any], None]) -> None:
    pipe = build()
    with t2ictl.controlled(pipe, [MOVES, Louder()]):
        expected = tiny.run(pipe, PROMPT, steps=2)
    switch_on(pipe)
    tried(pipe)
    with t2ictl.controlled(pipe, [MOVES, Louder()]):
        found = tiny.run(pipe, PROMPT, steps=2)
    if switch_on is free_u:
        assert distance(found, expected) > 0.01
    else:
        assert distance(found, expected) < 1e-4  # another way to compute the same


def test_switches_thrown_inside_a_session() -> None:
    pipe = tiny.sd()
    with t2ictl.controlled(pipe, [MOVES]):
        expected = tiny.run(pipe, PROMPT, steps=2)
        for active_pass, back in ((fuse, "unfuse_qkv_projections"), (slice_attention, "disable_attention_slicing")):
            active_pass(pipe)
            assert distance(tiny.run(pipe, PROMPT, steps=2), expected) < 1e-4
            if back != "unfuse_qkv_projections":
                getattr(pipe, back)()
    pipe.unfuse_qkv_projections()
    assert {type(each).__name__ for each in pipe.unet.attn_processors.values()} == {"AttnProcessor2_0"}


def test_decoded_images_with_vae_slices_and_tiles() -> None:
    pipe = tiny.sd()
    slice_and_tile_vae(pipe)
    with t2ictl.controlled(pipe, [MOVES]):
        images = tiny.run(pipe, list(THREE[:2]), steps=1, output_type="np")
    assert images.shape == (2, 64, 64, 3)


# -- more than one pipeline -------------------------------------------------------------------------------------------


def test_base_and_refiner() -> None:
    """SDXL's split: the base model makes the first part of the schedule, the refiner, with one encoder, the rest."""
    base = tiny.sdxl()
    parts = tiny.sdxl_img2img(
        seed=1, cross_attention_dim=tiny.TEXT_WIDTH, projection_class_embeddings_input_dim=5 * 8 + tiny.TEXT_WIDTH
    ).components
    parts |= {"text_encoder": None, "tokenizer": None}
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True, add_watermarker=False)
    refiner.set_progress_bar_config(disable=True)
    with t2ictl.controlled(base, [MOVES], record=True) as first:
        latents = tiny.run(base, PROMPT, steps=5, denoising_end=0.6)
    call = {"image": latents, "steps": 5, "denoising_start": 0.6, "strength": 0.3}
    tried(refiner, **call)
    with t2ictl.controlled(refiner, [MOVES], record=True) as second:
        tiny.run(refiner, PROMPT, **call)
    assert [(entry.step.index, entry.step.total) for entry in first.trace] == [(0, 3), (1, 3), (2, 3)]
    assert [(entry.step.index, entry.step.total) for entry in second.trace] == [(0, 2), (1, 2)]
    assert len(second.record.prompts[0].encodings) == 1
    assert first.record.map("circle").shape == second.record.map("circle").shape


def test_two_pipelines_with_one_denoiser_take_turns() -> None:
    pipe = tiny.sd()
    other = sibling(pipe)
    plain = tiny.run(other, PROMPT, steps=4)
    with t2ictl.controlled(pipe, [MOVES]):
        tiny.run(pipe, PROMPT, steps=2)
    with t2ictl.controlled(other, [MOVES]) as session:
        moved = tiny.run(other, PROMPT, steps=4)
    assert session.cost.extra_forwards == 3
    assert not torch.equal(moved, plain)
    assert torch.equal(tiny.run(other, PROMPT, steps=4), plain)


def test_t2i_adapter() -> None:
    """The denoiser takes its residuals out of a list, one by one; each pass of the session needs them all."""
    parts = {key: value for key, value in tiny.sd().components.items() if key != "image_encoder"}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        settings = {"in_channels": 3, "channels": [8, 16, 16, 16], "num_res_blocks": 1, "downscale_factor": 4}
        adapter = diffusers.T2IAdapter(adapter_type="full_adapter", **settings)
    pipe = diffusers.StableDiffusionAdapterPipeline(**parts, adapter=adapter, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    call = {"image": tiny.image(), "height": 64, "width": 64}
    tried(pipe, **call)
    passes: list[bool] = []
    layer = pipe.unet.down_blocks[1]
    layer.register_forward_pre_hook(
        lambda module, given, named: passes.append("additional_residuals" in named), with_kwargs=True
    )
    refined = AttendAndExcite(step=MOVES.step, refinement=Refinement(thresholds=((0.0, 1.0),), max_iterations=3))
    with t2ictl.controlled(pipe, [refined]):
        tiny.run(pipe, PROMPT, steps=1, **call)
    assert passes == [True] * (1 + 3 + 1)  # the first move, three refinements, the image
