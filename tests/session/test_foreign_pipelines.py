"""Pipelines and tools that do something of their own with the denoiser: refused by name, and left as they were."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers.hooks import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast
from torch import Tensor, nn

import t2ictl
from t2ictl.errors import UnsupportedPipeline
from t2ictl.families.evaluations import evaluates_once
from t2ictl.guidance.rules import StepSize
from t2ictl.processors import AttendAndExcite, AttentionSegregation, InitialNoise, StructuredGuidance, TokenMerging
from tests import tiny
from tests.session.pipeline_cases import PIPELINES, state, unreached
from tests.session.session_cases import PROMPT, pipeline

MOVES = AttentionSegregation(step=StepSize(scale=0.05, mode="normalized"))


def made_of(cls: Any, base: Any, **more: Any) -> Any:
    accepted = inspect.signature(cls.__init__).parameters
    parts = {key: value for key, value in base.components.items() if key in accepted}
    pipe = cls(**parts, **({"requires_safety_checker": False} if "requires_safety_checker" in accepted else {}), **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# -- several evaluations in one step ----------------------------------------------------------------------------------

SEVERAL = ("StableDiffusionSAGPipeline", "StableDiffusionPanoramaPipeline", "StableDiffusionAttendAndExcitePipeline")


@pytest.mark.parametrize("name", SEVERAL)
def test_pipelines_that_evaluate_several_times_in_a_step(name: str) -> None:
    pipe = made_of(getattr(diffusers, name), tiny.sd())
    with unreached(pipe), pytest.raises(UnsupportedPipeline, match=f"{name} evaluates its denoiser several times"):
        with t2ictl.controlled(pipe, [MOVES]):
            tiny.run(pipe, PROMPT, steps=2)


class Repeating(diffusers.StableDiffusionPipeline):
    """Its source shows nothing: a method evaluates the denoiser, from some step on twice."""

    first_twice = 0

    def __call__(self, prompt: str, **more: Any) -> Any:
        embeds = self.encode_prompt(prompt, "cpu", 1, False)[0]
        self.scheduler.set_timesteps(2)
        sample = torch.ones(1, 4, 16, 16)
        for index, t in enumerate(self.scheduler.timesteps):
            noise = self.evaluate(sample, t, embeds)
            if index >= self.first_twice:
                noise = self.evaluate(noise, t, embeds)
            sample = self.scheduler.step(noise, t, sample)[0]
        return sample

    def evaluate(self, *given: Any) -> Tensor:
        with torch.no_grad():
            return self.unet(*given)[0]


@pytest.mark.parametrize("first_twice", [0, 1])
@pytest.mark.parametrize("controls", [[MOVES], [StructuredGuidance()]], ids=["moves", "edits"])
def test_a_second_evaluation_that_no_source_shows_is_named_when_it_comes(controls: list[Any], first_twice: int) -> None:
    pipe = made_of(Repeating, tiny.sd())
    pipe.first_twice = first_twice
    plain, before = pipe(PROMPT), state(pipe)
    with pytest.raises(UnsupportedPipeline, match="Repeating evaluates its denoiser several times"):
        with t2ictl.controlled(pipe, controls):
            pipe(PROMPT)
    assert state(pipe) == before and torch.equal(pipe(PROMPT), plain)


@pytest.mark.parametrize("build", [*PIPELINES.values(), tiny.sd, tiny.sdxl], ids=[*PIPELINES, "sd", "sdxl"])
def test_ordinary_pipelines_evaluate_once(build: Callable[[], Any]) -> None:
    assert evaluates_once(build())


def test_which_pipeline_decides() -> None:
    class Panorama(diffusers.StableDiffusionPanoramaPipeline):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    class Plain(diffusers.StableDiffusionPanoramaPipeline):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            for t in self.scheduler.timesteps:
                if self.guidance_scale > 1:
                    noise = self.unet(kwargs, t, 1)
                else:
                    noise = self.unet(kwargs, t, 2)
            return noise

    assert not evaluates_once(Panorama.__new__(Panorama)) and evaluates_once(Plain.__new__(Plain))


# -- processors that a pipeline sets for its call ---------------------------------------------------------------------


@pytest.mark.parametrize("build", [tiny.sd, tiny.sdxl])
def test_processors_of_a_refused_call_do_not_stay(build: Any) -> None:
    name = "StableDiffusionXLPAGPipeline" if build is tiny.sdxl else "StableDiffusionPAGPipeline"
    pipe = made_of(getattr(diffusers, name), build(), pag_applied_layers=["mid"])
    plain = tiny.run(pipe, PROMPT, steps=1)
    before = state(pipe)
    with t2ictl.controlled(pipe, [MOVES]):
        for _ in range(2):
            with unreached(pipe), pytest.raises(UnsupportedPipeline, match="3 rows where 2 were expected"):
                tiny.run(pipe, PROMPT, steps=1)
            assert pipe.unet.attn_processors == before["processors"]
    assert state(pipe) == before
    assert torch.equal(tiny.run(pipe, PROMPT, steps=1), plain)
    without = tiny.run(pipe, PROMPT, steps=1, pag_scale=0.0)
    with t2ictl.controlled(pipe, record=True):  # switched off, it is an ordinary pipeline
        assert torch.equal(tiny.run(pipe, PROMPT, steps=1, pag_scale=0.0), without)


# -- features of an evaluation before ---------------------------------------------------------------------------------


def broadcast(pipe: Any) -> Callable[[], None]:
    """Diffusers' own cache of attention results."""
    settings = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        spatial_attention_block_identifiers=("mid_block", "up_blocks"),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(pipe.unet, settings)
    return lambda: None


def skip_middle(pipe: Any) -> Callable[[], None]:
    """A third package, which runs the inner blocks at every second evaluation only."""
    block, kept = pipe.unet.mid_block, list[Tensor]()
    own = block.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        if not kept:
            kept.append(own(*args, **kwargs))
            return kept[0]
        return kept.pop().detach()

    block.forward = forward
    return lambda: block.__dict__.pop("forward")


CONTROLS: dict[str, dict[str, Any]] = {
    "moves": {"controls": [MOVES]},
    "edits": {"controls": [StructuredGuidance()]},
    "record": {"record": True},
    "text rows": {"controls": [TokenMerging()]},
}


@pytest.mark.parametrize("given", CONTROLS.values(), ids=CONTROLS)
@pytest.mark.parametrize("cache", [broadcast, skip_middle], ids=lambda each: each.__name__)
def test_layers_that_a_cache_leaves_out_are_noticed(cache: Any, given: dict[str, Any]) -> None:
    pipe = tiny.sd()
    undo = cache(pipe)
    processors = dict(pipe.unet.attn_processors)
    with pytest.raises(UnsupportedPipeline, match="did not run at evaluation|features of one pass for the next"):
        with t2ictl.controlled(pipe, **given):
            tiny.run(pipe, PROMPT, steps=4)
    assert pipe.unet.attn_processors == processors and "_t2ictl" not in vars(pipe.unet)
    undo()


def test_a_cache_that_leaves_out_nothing_is_none_of_our_business() -> None:
    pipe = tiny.sd()
    undo = skip_middle(pipe)
    with t2ictl.controlled(pipe):  # nothing acts
        tiny.run(pipe, PROMPT, steps=4)
    undo()
    with t2ictl.controlled(pipe, [MOVES]) as session:
        tiny.run(pipe, PROMPT, steps=4)
    assert len(session.trace) == 4


# -- no way back for the gradient -------------------------------------------------------------------------------------


class InPlace(nn.Module):
    """An attention processor that edits its weights in place, as prompt-to-prompt pipelines do."""

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            attn.head_to_batch_dim(each) for each in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        weights = attn.get_attention_scores(q, k)
        weights[:, :, 1] *= 2
        return attn.to_out[0](attn.batch_to_head_dim(weights @ v))  # type: ignore[no-any-return]


def in_place(pipe: Any) -> None:
    pipe.unet.set_attn_processor(InPlace())


def detached(pipe: Any) -> None:
    pipe.unet.conv_in.register_forward_hook(lambda module, given, out: out.detach())


NO_WAY = [(AttendAndExcite(refinement=None), in_place), (AttendAndExcite(), detached), (InitialNoise(), in_place)]
NO_WAY += [(InitialNoise(), detached), (TokenMerging(), in_place)]


@pytest.mark.parametrize(("control", "change"), NO_WAY, ids=lambda each: getattr(each, "name", each.__class__.__name__))
def test_where_no_gradient_passes_is_named(control: Any, change: Any) -> None:
    match = "in place" if change is in_place else "detaches"
    pipe = tiny.sd()
    change(pipe)
    plain, before = tiny.run(pipe, PROMPT, steps=1), state(pipe)
    with pytest.raises(UnsupportedPipeline, match=match):
        with t2ictl.controlled(pipe, [control]):
            tiny.run(pipe, PROMPT, steps=1)
    assert state(pipe) == before and torch.equal(tiny.run(pipe, PROMPT, steps=1), plain)


# -- other arguments of encode_prompt ---------------------------------------------------------------------------------


class OtherArguments(diffusers.StableDiffusionPipeline):
    def encode_prompt(self, text: str, device: Any) -> Any:  # type: ignore[override]
        return super().encode_prompt(text, device, 1, True)


class PassedOn(diffusers.StableDiffusionPipeline):
    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        return super().encode_prompt(*args, **kwargs)


def test_encode_prompt_with_other_arguments() -> None:
    pipe = made_of(OtherArguments, tiny.sd())
    with unreached(pipe), pytest.raises(UnsupportedPipeline, match="encode_prompt has no prompt.*it has: text, device"):
        t2ictl.controlled(pipe, [MOVES])
    assert isinstance(t2ictl.parse(pipe, PROMPT), t2ictl.Prompt)  # which encodes nothing


@pytest.mark.parametrize("own", ["class", "instance"])
def test_encode_prompt_that_passes_everything_on(own: str) -> None:
    plain = pipeline("sd")
    with t2ictl.controlled(plain, [MOVES]):
        expected = tiny.run(plain, PROMPT, steps=2)
    pipe = made_of(PassedOn if own == "class" else diffusers.StableDiffusionPipeline, tiny.sd())
    if own == "instance":
        inner = pipe.encode_prompt
        pipe.encode_prompt = lambda *args, **kwargs: inner(*args, **kwargs)
    with t2ictl.controlled(pipe, [MOVES]):
        assert torch.equal(tiny.run(pipe, PROMPT, steps=2), expected)
