"""Options of a call and of a pipeline with which users run transformers: each works in a session."""

from __future__ import annotations

import copy
from contextlib import nullcontext as does_not_raise
from typing import Any

import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.attention.edits import AttentionCall, Edit
from t2ictl.controls.attention_edit import AttentionEdit
from t2ictl.errors import UnsupportedPipeline
from tests import tiny
from tests.families.transformers.cases import (
    DISTINCT,
    FAMILIES,
    MOVES,
    PROMPT,
    STEPS,
    distance,
    held,
    shared,
    sibling,
)
from tests.session.pipeline_cases import state
from tests.tiny_transformers import run


def tried(pipe: Any, prompt: Any = PROMPT, **call: Any) -> Tensor:
    """Recorded bit-equal, moved, restored; return the plain latents."""
    call = {"steps": STEPS} | call
    plain = run(pipe, prompt, **call)
    before = state(pipe)
    recorded, session = held(pipe, [], prompt, record=True, **call)
    assert torch.equal(recorded, plain)
    assert float(session.record.map("circle").std()) > 1e-4
    moved, _ = held(pipe, [MOVES], prompt, **call)
    assert torch.isfinite(moved).all() and distance(moved, plain) > 1e-3
    assert state(pipe) == before
    assert torch.equal(run(pipe, prompt, **call), plain)
    return plain


# -- options of the call ----------------------------------------------------------------------------------------------

# What each of them changes in the maps: height and width in tokens, where they are other ones.
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("flux", {"height": 48, "width": 80}),
    ("flux", {"height": 50, "width": 83}),  # rounded by the pipeline
    ("chroma", {"height": 50, "width": 83}),
    ("sd3", {"height": 48, "width": 80}),
    ("pixart_sigma", {"height": 48, "width": 80}),
    ("hunyuan_dit", {"height": 96, "width": 160}),
    ("sana", {"height": 96, "width": 160}),
    ("flux", {"sigmas": [1.0, 0.6, 0.2], "steps": 3}),
    ("sd3", {"sigmas": [1.0, 0.6, 0.2], "steps": 3}),
    ("hunyuan_dit", {"guidance_rescale": 0.7}),
    ("flux", {"guidance_scale": 7.0}),
    ("flux", {"steps": 1}),
    ("flux", {"max_sequence_length": 512}),
    ("sd3", {"latents": torch.randn(1, 8, 16, 12, generator=tiny.generator(4))}),
    ("flux", {"latents": torch.randn(1, 48, 16, generator=tiny.generator(4))}),
    ("flux_kontext", {"image": None}),
    ("sd3_controlnet", {"controlnet_conditioning_scale": 0.5, "control_guidance_end": 0.5}),
    ("flux_controlnet", {"controlnet_conditioning_scale": 0.5, "control_guidance_end": 0.5}),
]


@pytest.mark.parametrize(("name", "call"), OPTIONS, ids=[f"{name}-{'-'.join(call)}" for name, call in OPTIONS])
def test_options_of_the_call(name: str, call: dict[str, Any]) -> None:
    pipe = shared(name)
    plain = tried(pipe, **call)
    assert not torch.equal(plain, run(pipe, PROMPT, steps=STEPS))


WIDE = [(name, call) for name, call in OPTIONS if call.get("width", 0) in (80, 160)]


@pytest.mark.parametrize(("name", "call"), WIDE, ids=[name for name, _ in WIDE])
def test_maps_have_the_shape_of_the_image(name: str, call: dict[str, Any]) -> None:
    _, session = held(shared(name), [], record=True, **call)
    assert session.record.map("circle").shape == (6, 10)


@pytest.mark.parametrize("name", DISTINCT)
def test_a_list_of_one_prompt(name: str) -> None:
    one, _ = held(shared(name), [MOVES], [PROMPT])
    assert torch.equal(one, held(shared(name), [MOVES], PROMPT)[0])


# -- parts of the pipeline --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [("text_encoder_3",), ("text_encoder_3", "tokenizer_3")], ids=len)
def test_stable_diffusion_3_without_t5(parts: tuple[str, ...]) -> None:
    pipe = FAMILIES["sd3"]()
    for part in parts:
        setattr(pipe, part, None)
    tried(pipe)


def test_prompts_of_their_own_for_each_encoder() -> None:
    """Words are those of the encoders whose rows are read: of CLIP, FLUX reads no row."""
    tried(shared("flux"), "a frog", prompt_2=PROMPT)
    moved, _ = held(shared("flux"), [MOVES], "a frog", prompt_2=PROMPT)
    assert not torch.equal(moved, held(shared("flux"), [MOVES])[0])


def test_a_control_image_in_the_channels() -> None:
    tried(sibling(FAMILIES["flux"](in_channels=32, out_channels=16), "FluxControlPipeline"))


@pytest.mark.parametrize("name", [name for name in DISTINCT if name != "hunyuan_dit"])  # which has no such thing
def test_gradient_checkpointing(name: str) -> None:
    """Diffusers' own is held off in the session's passes: maps would be heard twice."""
    pipe = FAMILIES[name]()
    expected, _ = held(pipe, [MOVES])
    pipe.transformer.enable_gradient_checkpointing()
    pipe.transformer.train()
    tried(pipe)
    assert torch.equal(held(pipe, [MOVES])[0], expected)


@pytest.mark.parametrize("name", DISTINCT)
def test_a_deep_copy_made_in_a_session_is_a_pipeline_of_its_own(name: str) -> None:
    pipe = FAMILIES[name]()
    plain, before = run(pipe, PROMPT, steps=STEPS), set(vars(pipe.transformer))
    with t2ictl.controlled(pipe, [MOVES]):
        expected = run(pipe, PROMPT, steps=STEPS)
        made = copy.deepcopy(pipe)
        assert torch.equal(run(made, PROMPT, steps=STEPS), plain)
        with torch.no_grad():
            for weight in made.transformer.parameters():
                weight.mul_(-1.5)
        assert torch.equal(run(pipe, PROMPT, steps=STEPS), expected)
    assert set(vars(made.transformer)) == set(vars(pipe.transformer)) == before


# -- edits of attention -----------------------------------------------------------------------------------------------


class Through(Edit):
    """Takes every stage that a joint layer has, and changes nothing: attention proper is computed anew."""

    def tokens(self, call: AttentionCall, hidden_BQC: Tensor, context_BKC: Tensor) -> Any:
        return hidden_BQC.clone(), context_BKC.clone()

    def project(self, call: AttentionCall, q: Tensor, k: Tensor, v: Tensor) -> Any:
        return q.clone(), k.clone(), v.clone()

    def weights(self, call: AttentionCall, weights: Tensor) -> Tensor:
        return weights.clone()

    def output(self, call: AttentionCall, out_BQC: Tensor) -> Tensor:
        return out_BQC.clone()


class Louder(Edit):
    """Doubles what each place of the image gets, in the rows of the prompt."""

    def output(self, call: AttentionCall, out_BQC: Tensor) -> Tensor:
        rows = list(call.batch.indices("cond"))
        height, width = call.size
        assert out_BQC.shape[1] == height * width
        out_BQC = out_BQC.clone()
        out_BQC[rows] *= 2
        return out_BQC


CROSS = ("pixart_sigma", "sana", "hunyuan_dit")


class Exchanged(Edit):
    def values(self, call: AttentionCall, context_BKC: Tensor) -> Tensor:
        return context_BKC.flip(1)


@pytest.mark.parametrize("name", DISTINCT)
def test_edits_at_all_layers_with_a_softmax(name: str) -> None:
    pipe = FAMILIES[name](dtype=torch.float64)
    plain, before = run(pipe, PROMPT, steps=STEPS), state(pipe)
    kinds = sorted({layer.kind for layer in t2ictl.controlled(pipe).adapter.layers} - {"linear"})
    same, session = held(pipe, [AttentionEdit(kinds, Through())])
    assert distance(same, plain) < 1e-12 and len(session.layers) >= 4
    louder, session = held(pipe, [AttentionEdit(kinds, Louder())])
    assert distance(louder, plain) > 1e-3 and session.cost.extra_forwards == 0
    beside, _ = held(pipe, [AttentionEdit(kinds, Louder()), MOVES], record=True)
    assert distance(beside, louder) > 1e-3
    assert state(pipe) == before
    assert torch.equal(run(pipe, PROMPT, steps=STEPS), plain)


@pytest.mark.parametrize("name", DISTINCT)
def test_values_of_other_text(name: str) -> None:
    """Only cross-attention can take them: in a joint layer the text goes on in the result."""
    pipe = shared(name)
    edit = AttentionEdit("cross" if name in CROSS else "joint", Exchanged())
    refused = (
        does_not_raise() if name in CROSS else pytest.raises(UnsupportedPipeline, match="cannot come of other text")
    )
    moved = [run(pipe, PROMPT, steps=STEPS)]
    with refused:
        moved.append(held(pipe, [edit])[0])
    assert (distance(moved[0], moved[-1]) > 1e-3) == (name in CROSS)
