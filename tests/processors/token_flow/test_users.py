"""Token flow on what users run: other pipelines, adapters, placeholders, offloading, half precision, long prompts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.errors import AmbiguousWord, ControlConflict, SpanNotFound, UnsupportedPipeline
from t2ictl.processors import AttentionSegregation, TokenFlow, TokenMerging
from tests import tiny
from tests.processors.token_flow.flow_cases import PROMPT, BrightnessJudge, Case
from tests.session.pipeline_cases import PIPELINES, add_lora, give_image_prompt
from tests.tiny import run, sd, sdxl

accelerate = pytest.importorskip("accelerate")  # what diffusers offloads with; a skip here fails the run
SMALL: dict[str, Any] = {"steps": 2, "seeds": 2, "confirm": 0, "batch": 4, "guidance_scale": 3.0}


def check(pipe: Any, prompt: Any = PROMPT, **call: Any) -> Tensor:
    """The image changes, the same way each time, and everything is as before."""
    plain = run(pipe, prompt, steps=2, **call)
    made = []
    for _ in range(2):
        with t2ictl.controlled(pipe, [TokenFlow()]):
            made.append(run(pipe, prompt, steps=2, **call))
    assert torch.equal(*made) and bool(made[0].isfinite().all()) and (made[0] - plain).abs().max() > 1e-4
    assert torch.equal(run(pipe, prompt, steps=2, **call), plain)
    return made[0]


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_of_the_families(name: str) -> None:
    check(PIPELINES[name]())


def test_image_prompt_and_lora() -> None:
    pipe = sd()
    check(pipe, **give_image_prompt(pipe))
    pipe = sd()
    add_lora(pipe)
    check(pipe, cross_attention_kwargs={"scale": 0.5})


@pytest.mark.parametrize("build", [sd, sdxl])
def test_several_images_negative_prompts_and_no_guidance(build: Any) -> None:
    both = check(build(), num_images_per_prompt=2, negative_prompt="a cat")
    assert len(both) == 2 and not torch.equal(both[0], both[1])
    check(build(), guidance_scale=1.0)


def test_rows_are_those_of_the_call_with_its_skipped_layers() -> None:
    pipe = sdxl()
    seen: list[Tensor] = []
    pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    with t2ictl.controlled(pipe, [TokenFlow(items=("square",))]):
        run(pipe, PROMPT, steps=1)
        run(pipe, PROMPT, steps=1, clip_skip=1)
    whole, skipped = seen
    assert not torch.equal(whole[1, 7], skipped[1, 7]) and not torch.equal(whole[1, 3], skipped[1, 3])


def test_placeholders_of_several_vectors_are_one_item() -> None:
    pipe = sd()
    vectors = torch.randn(3, tiny.TEXT_WIDTH, generator=tiny.generator(5))
    pipe.load_textual_inversion({"<toy>": vectors}, token="<toy>")
    text = "a <toy> and a red circle"
    check(pipe, text)
    plain = pipe.encode_prompt(text, "cpu", 1, False)[0].detach()[0]
    rows = TokenFlow.embeds(pipe, [text], items=("circle",))["prompt_embeds"][0]
    assert [place for place in range(16) if not torch.equal(rows[place], plain[place])] == [8]
    result = t2ictl.flow(pipe, text, ["<toy>", "circle"], judge=BrightnessJudge(), **SMALL)
    assert [cell.token for cell in result.tokens] == [2, 3, 4, 8]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    pipe = sd(dtype=dtype)
    rows = TokenFlow.embeds(pipe, [PROMPT], strength=0.5)["prompt_embeds"]
    assert rows.dtype == dtype and bool(rows.isfinite().all())
    exact = TokenFlow.embeds(sd(), [PROMPT], strength=0.5)["prompt_embeds"]
    torch.testing.assert_close(rows.float(), exact, rtol=0, atol=0.1)
    result = t2ictl.flow(pipe, PROMPT, **SMALL)
    assert all(0 <= cell.total < 10 for cell in result.screen)


def test_offloading() -> None:
    wanted = t2ictl.flow(sd(), PROMPT, judge=BrightnessJudge(), **SMALL)
    whole, layers = sd(), sd()
    for module in (whole.text_encoder, whole.unet):
        accelerate.cpu_offload_with_hook(module, "cpu")
    for module in (layers.text_encoder, layers.unet, layers.vae):
        accelerate.cpu_offload(module, torch.device("cpu"))
    for pipe in (whole, layers):
        found = t2ictl.flow(pipe, PROMPT, judge=BrightnessJudge(), **SMALL)
        assert found.scores is not None and wanted.scores is not None
        assert found.scores.to_dict() == wanted.scores.to_dict()
        assert [cell.total for cell in found.screen] == pytest.approx([cell.total for cell in wanted.screen], abs=1e-6)


def test_prompts_over_the_token_limit() -> None:
    text = "a red circle and a blue square, photo of an image of an image of a cat"
    check(sd(), text)
    with pytest.raises(SpanNotFound, match="cut off"):
        TokenFlow.embeds(sd(), [text], items=("cat",))
    assert any(token.is_cut for token in t2ictl.flow(sd(), text, ["circle"], **SMALL).table[0])


def test_unlike_prompts_of_two_encoders() -> None:
    pipe = sdxl()
    with pytest.raises(AmbiguousWord):
        with t2ictl.controlled(pipe, [TokenFlow(items=("circle",))]):
            run(pipe, PROMPT, steps=1, prompt_2="photo of a red circle and a blue square")


def test_a_text_encoder_that_was_dropped() -> None:
    pipe = sd()
    embeds = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0].detach()
    pipe.text_encoder = None
    with pytest.raises(UnsupportedPipeline, match="no text encoder"):
        with t2ictl.controlled(pipe, [TokenFlow()], prompt=[PROMPT]):
            run(pipe, None, steps=1, prompt_embeds=embeds, negative_prompt_embeds=torch.zeros_like(embeds))


def test_beside_other_controls() -> None:
    pipe = sd()
    with t2ictl.controlled(pipe, [TokenFlow(), AttentionSegregation()], record=True) as session:
        run(pipe, PROMPT, steps=2)
    assert session.trace and float(session.record.map("circle").sum()) > 0
    with pytest.raises(ControlConflict, match="the text states"):
        with t2ictl.controlled(pipe, [TokenFlow(), TokenMerging(merge=True)]):
            run(pipe, PROMPT, steps=1)


def test_switches() -> None:
    switches: dict[str, Callable[[Any], Any]] = {
        "fused": lambda pipe: pipe.fuse_qkv_projections(),
        "slices": lambda pipe: pipe.enable_attention_slicing(),
        "freeu": lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
    }
    for active_pass in switches.values():
        pipe = sd()
        active_pass(pipe)
        check(pipe)
        t2ictl.flow(pipe, PROMPT, judge=BrightnessJudge(), operators=("drop",), **SMALL)


def test_a_session_may_not_be_open_where_an_analysis_begins() -> None:
    pipe = sd()
    with t2ictl.controlled(pipe, []):
        with pytest.raises(ControlConflict):
            t2ictl.flow(pipe, PROMPT, **SMALL)


def test_pipeline_encoders_with_a_mask_of_their_own() -> None:
    pipe = sd()
    pipe.text_encoder.config.use_attention_mask = True
    case = Case(pipe)
    stock = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0].detach()
    assert torch.equal(case.row(case.make.whole()).states, stock[0])
    encode = functools.partial(check, pipe)
    encode()
