"""What users do to a transformer: offloading, caches, compiling, two pipelines with one model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig

import t2ictl
from t2ictl.errors import ControlConflict, ForeignCall, UnsupportedPipeline
from t2ictl.processors import StructuredGuidance
from tests.families.transformers.cases import DISTINCT, FAMILIES, MOVES, PROMPT, STEPS, held, sibling
from tests.session.pipeline_cases import state
from tests.tiny_transformers import run
from tests.tiny_variants import VARIANTS

accelerate = pytest.importorskip("accelerate")  # what diffusers offloads with; a skip here fails the run

# -- weights that are away --------------------------------------------------------------------------------------------


def offload(pipe: Any) -> None:
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="leaf_level"
    )


def cast(pipe: Any) -> None:
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)


AWAY = {"group_offloading": offload, "layerwise_casting": cast}
CASES = [
    (name, named)
    for named in AWAY
    for name in FAMILIES
    if (name, named) != ("hunyuan_dit", "group_offloading")  # of which diffusers has none for it
]


@pytest.mark.parametrize(("name", "named"), CASES)
def test_weights_that_are_moved_away_after_each_layer(name: str, named: str) -> None:
    """Maps can be recorded; a gradient cannot be taken."""
    pipe = FAMILIES[name]()
    AWAY[named](pipe)
    plain = run(pipe, PROMPT, steps=STEPS)
    before = state(pipe)
    recorded, session = held(pipe, [], record=True)
    assert torch.equal(recorded, plain)
    assert float(session.record.map("circle").std()) > 1e-4
    with pytest.raises(UnsupportedPipeline, match=named), t2ictl.controlled(pipe, [MOVES]) as session:
        run(pipe, PROMPT, steps=STEPS)
    assert session.cost.forwards == 0
    assert state(pipe) == before
    assert torch.equal(run(pipe, PROMPT, steps=STEPS), plain)


@pytest.mark.parametrize("name", DISTINCT)
def test_model_offloading(name: str) -> None:
    """What ``enable_model_cpu_offload``, which needs an accelerator, does before and after a call."""
    pipe = FAMILIES[name]()
    plain, expected = run(pipe, PROMPT, steps=STEPS), held(pipe, [MOVES])[0]

    def renew() -> None:
        accelerate.hooks.remove_hook_from_module(pipe.transformer, recurse=True)
        accelerate.cpu_offload_with_hook(pipe.transformer, "cpu")

    renew()
    with t2ictl.controlled(pipe, [MOVES], record=True):
        for _ in range(2):
            assert torch.equal(run(pipe, PROMPT, steps=STEPS), expected)
            renew()
        forward = pipe.transformer.forward
    assert pipe.transformer.forward is forward
    assert torch.equal(run(pipe, PROMPT, steps=STEPS), plain)


# HunyuanDiT's pooling of text takes the weights of its layers, which diffusers does not bring back.
@pytest.mark.parametrize("name", [name for name in DISTINCT if name != "hunyuan_dit"])
def test_sequential_offloading(name: str) -> None:
    pipe = FAMILIES[name]()
    edits = [StructuredGuidance()] if name in ("pixart_sigma", "sana") else []
    plain, expected = run(pipe, PROMPT, steps=STEPS), held(pipe, edits)[0]
    accelerate.cpu_offload(pipe.transformer, torch.device("cpu"))
    recorded, session = held(pipe, edits, record=True)  # neither maps nor edits need a gradient
    assert torch.equal(recorded, expected) and bool(edits) != torch.equal(recorded, plain)
    assert float(session.record.map("circle").std()) > 1e-4
    with pytest.raises(UnsupportedPipeline, match="enable_model_cpu_offload"):
        held(pipe, [MOVES])
    assert torch.equal(run(pipe, PROMPT, steps=STEPS), plain)


# -- what runs otherwise than it is written ---------------------------------------------------------------------------

BROADCAST = PyramidAttentionBroadcastConfig(
    spatial_attention_block_skip_range=2,
    current_timestep_callback=lambda: 500,
    spatial_attention_timestep_skip_range=(0, 1000),
)
CACHES = {"flux": FirstBlockCacheConfig(threshold=0.1), "flux_schnell": BROADCAST, "chroma": BROADCAST}


def test_no_other_transformer_has_caches() -> None:
    assert {name for name in FAMILIES if hasattr(FAMILIES[name]().transformer, "enable_cache")} == set(CACHES)


@pytest.mark.parametrize("name", CACHES)
def test_a_cached_transformer_is_refused(name: str) -> None:
    pipe = FAMILIES[name]()
    plain = run(pipe, PROMPT, steps=STEPS)
    pipe.transformer.enable_cache(CACHES[name])
    with pytest.raises(UnsupportedPipeline, match="enable_cache"):
        t2ictl.controlled(pipe, record=True)
    pipe.transformer.disable_cache()
    before = state(pipe)
    with t2ictl.controlled(pipe, [MOVES]) as session:
        run(pipe, PROMPT, steps=STEPS)
        pipe.transformer.enable_cache(CACHES[name])
        with pytest.raises(UnsupportedPipeline, match="enable_cache"):
            run(pipe, PROMPT, steps=STEPS)
        pipe.transformer.disable_cache()
    assert session.cost.forwards > 0
    assert state(pipe)["processors"] == before["processors"]
    assert torch.equal(run(pipe, PROMPT, steps=STEPS), plain)


@pytest.mark.parametrize("how", ["whole", "in place", "a block"])
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_compiled_transformer_is_refused(name: str, how: str) -> None:
    pipe = FAMILIES[name]()
    if how == "whole":
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    else:
        (pipe.transformer if how == "in place" else pipe.transformer.transformer_blocks[1]).compile(backend="eager")
    with pytest.raises(UnsupportedPipeline, match=r"torch\.compile"):
        t2ictl.controlled(pipe, [MOVES])


# -- two pipelines with one transformer -------------------------------------------------------------------------------

SIBLINGS = {
    "pixart_sigma": "PixArtAlphaPipeline",
    "sana": "SanaPipeline",
    "hunyuan_dit": "HunyuanDiTPipeline",
    "sd3": "StableDiffusion3Img2ImgPipeline",
    "sd35": "StableDiffusion3Pipeline",
    "flux": "FluxImg2ImgPipeline",
    "chroma": "ChromaImg2ImgPipeline",
}


@pytest.mark.parametrize("name", SIBLINGS)
def test_another_pipeline_with_the_same_transformer(name: str) -> None:
    pipe = FAMILIES[name]()
    other = sibling(pipe, SIBLINGS[name])
    plain, foreign = run(pipe, PROMPT, steps=STEPS), run(other, PROMPT, steps=STEPS)
    before = state(pipe)
    with t2ictl.controlled(pipe, [MOVES]):
        with pytest.raises(ForeignCall):  # before the first call of the session's own pipeline
            run(other, PROMPT, steps=STEPS)
        expected = run(pipe, PROMPT, steps=STEPS)
        with pytest.raises(ForeignCall):
            run(other, PROMPT, steps=STEPS)
        assert torch.equal(run(pipe, PROMPT, steps=STEPS), expected)
        with pytest.raises(ControlConflict), t2ictl.controlled(other, [MOVES]):
            run(other, PROMPT, steps=STEPS)
    assert state(pipe) == before
    assert torch.equal(run(pipe, PROMPT, steps=STEPS), plain)
    assert torch.equal(run(other, PROMPT, steps=STEPS), foreign)


@pytest.mark.parametrize("name", [name for name in SIBLINGS if not name.startswith("pixart")])
def test_another_pipeline_in_the_middle_of_a_call(name: str) -> None:
    pipe = FAMILIES[name]()
    other = sibling(pipe, SIBLINGS[name])
    before = state(other)["processors"]

    def call_the_other(pipe: Any, index: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        if index == 0:
            run(other, "a frog", steps=STEPS)
        return given

    with pytest.raises(ForeignCall), t2ictl.controlled(pipe, [MOVES]):
        run(pipe, PROMPT, steps=STEPS, callback_on_step_end=call_the_other)
    assert state(pipe)["processors"] == before


@pytest.mark.parametrize("name", ["flux_controlnet", "sd3_inpaint", "sana_controlnet"])
def test_a_variant_and_its_family_share_one_transformer(name: str) -> None:
    variant = VARIANTS[name]()
    base = {"flux": "FluxPipeline", "sd3": "StableDiffusion3Pipeline", "sana": "SanaPipeline"}[name.partition("_")[0]]
    pipe = sibling(variant, base)
    plain = run(pipe, PROMPT, steps=STEPS)
    with t2ictl.controlled(variant, [MOVES]), pytest.raises(ForeignCall):
        run(pipe, PROMPT, steps=STEPS)
    assert torch.equal(run(pipe, PROMPT, steps=STEPS), plain)


# -- rows of its own --------------------------------------------------------------------------------------------------

PERTURBED = {
    "pixart_sigma": "PixArtSigmaPAGPipeline",
    "sana": "SanaPAGPipeline",
    "hunyuan_dit": "HunyuanDiTPAGPipeline",
    "sd3": "StableDiffusion3PAGPipeline",
}


@pytest.mark.parametrize("name", PERTURBED)
def test_pipelines_that_add_rows_are_refused_by_name(name: str) -> None:
    """Perturbed-attention guidance repeats the prompt's rows, and puts processors of its own for the call."""
    pipe = sibling(FAMILIES[name](), PERTURBED[name])
    plain = run(pipe, PROMPT, steps=STEPS)
    before = state(pipe)
    with t2ictl.controlled(pipe, [MOVES]) as session:
        for _ in range(2):
            with pytest.raises(UnsupportedPipeline, match="3 rows where 2 were expected"):
                run(pipe, PROMPT, steps=STEPS)
            assert pipe.transformer.attn_processors == before["processors"]
    assert session.cost.extra_forwards == 0
    assert state(pipe) == before
    assert torch.equal(run(pipe, PROMPT, steps=STEPS), plain)
    without = run(pipe, PROMPT, steps=STEPS, pag_scale=0.0)
    assert torch.equal(held(pipe, [], record=True, pag_scale=0.0)[0], without)  # switched off, it is an ordinary one
