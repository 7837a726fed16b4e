"""A session that moves nothing leaves no bit of an image otherwise, whichever kernel, form or pipeline makes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention

import t2ictl
from t2ictl.attention.edits import AttentionCall, Edit
from t2ictl.controls.attention_edit import AttentionEdit
from t2ictl.errors import UnsupportedPipeline
from tests.families.transformers.cases import (
    FAMILIES,
    MOVES,
    OTHER,
    PIPELINES,
    PROMPT,
    STEPS,
    VARIANTS,
    WORDS,
    distance,
    excite,
    families,
    held,
    shared,
)
from tests.session.pipeline_cases import state
from tests.tiny_transformers import run

everything = pytest.mark.parametrize("name", PIPELINES)


def watched(pipe: Any, prompt: Any = PROMPT, **call: Any) -> tuple[Tensor, Any]:
    """Make a call plainly, in an idle session, recorded, and plainly once more; all are equal bit for bit."""
    call = {"steps": STEPS} | call
    plain = run(pipe, prompt, **call)
    before = state(pipe)
    with t2ictl.controlled(pipe):
        assert torch.equal(run(pipe, prompt, **call), plain)
    recorded, session = held(pipe, [], prompt, record=True, **call)
    assert torch.equal(recorded, plain)
    assert state(pipe) == before
    assert torch.equal(run(pipe, prompt, **call), plain)
    return plain, session


def images(name: str) -> dict[str, int]:
    """Variants make two images."""
    return {"num_images_per_prompt": 2} if name in VARIANTS else {}


@everything
def test_idle_and_recorded(name: str) -> None:
    plain, session = watched(shared(name), **images(name))
    record = session.record
    assert len(record.prompts) == len(plain) == (2 if name in VARIANTS else 1)
    assert record.steps == record.single_steps == STEPS
    assert session.cost.extra_forwards == 0 and session.trace == ()
    for word in WORDS:
        map_YX = record.map(word, image=len(plain) - 1)
        assert map_YX.shape == (8, 6)
        assert 0 < float(map_YX.min()) and float(map_YX.max()) < 1 and float(map_YX.std()) > 1e-4
    assert float((record.map("circle") - record.map("square")).abs().max()) > 1e-3


@everything
def test_moved_and_as_before(name: str) -> None:
    pipe = shared(name)
    plain, before = run(pipe, PROMPT, steps=STEPS, **images(name)), state(pipe)
    moved, session = held(pipe, [excite()], **images(name))
    assert torch.isfinite(moved).all()
    assert all(1e-3 < distance(one, other) < 1 for one, other in zip(moved, plain, strict=True))
    assert session.trace and all(float(entry.length.min()) > 0 for entry in session.trace)
    assert state(pipe) == before
    assert torch.equal(run(pipe, PROMPT, steps=STEPS, **images(name)), plain)


@families
def test_recording_beside_a_control(name: str) -> None:
    pipe = shared(name)
    silent, _ = held(pipe, [MOVES], [PROMPT, OTHER])
    recorded, _ = held(pipe, [MOVES], [PROMPT, OTHER], record=True)
    assert torch.equal(silent, recorded)


# -- projections in one product ---------------------------------------------------------------------------------------

# Fused, the plain call of SD3.5 medium raises: a fault of its image-only attention.
FUSED = [*(name for name in FAMILIES if name != "sd35"), "flux_controlnet", "hunyuan_dit_controlnet"]


@pytest.mark.parametrize("name", FUSED)
def test_fused_projections(name: str) -> None:
    pipe = PIPELINES[name]()
    _, apart = watched(pipe)
    moved_apart, _ = held(pipe, [MOVES])
    (pipe if hasattr(pipe, "fuse_qkv_projections") else pipe.transformer).fuse_qkv_projections()
    fused, together = watched(pipe)
    moved, _ = held(pipe, [MOVES])
    assert distance(moved, fused) > 1e-3
    assert distance(moved, moved_apart) < 1e-4
    assert torch.allclose(together.record.map("circle"), apart.record.map("circle"), atol=1e-6)


@pytest.mark.parametrize("name", ["sd35"])
def test_fused_projections_that_the_pipeline_itself_cannot_use(name: str) -> None:
    pipe = FAMILIES[name]()
    pipe.transformer.fuse_qkv_projections()
    with pytest.raises(AttributeError):
        run(pipe, PROMPT, steps=1)
    before = state(pipe)
    with pytest.raises(AttributeError), t2ictl.controlled(pipe, [MOVES], record=True):
        run(pipe, PROMPT, steps=1)
    assert state(pipe) == before


# -- back-ends of the kernel ------------------------------------------------------------------------------------------


@pytest.fixture
def native_afterwards() -> Iterator[None]:
    """The back-end of one model becomes that of all others that have none of their own."""
    yield
    FAMILIES["flux"]().transformer.set_attention_backend("native")


KERNELS = ["_native_math", "flex"]  # flex never calls ``scaled_dot_product_attention``


@pytest.mark.usefixtures("native_afterwards")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("name", ["flux", "chroma"])
def test_other_kernels(name: str, backend: str) -> None:
    pipe = FAMILIES[name]()
    _, native = watched(pipe)
    moved_natively, _ = held(pipe, [MOVES])
    pipe.transformer.set_attention_backend(backend)
    before = [vars(each.processor).copy() for each in pipe.transformer.modules() if hasattr(each, "processor")]
    plain, other = watched(pipe)
    for word in WORDS:
        assert torch.allclose(other.record.map(word), native.record.map(word), atol=1e-6)
    # No image comes of the session's own passes: they run on the native kernel, which a gradient can pass.
    moved, _ = held(pipe, [MOVES])
    assert distance(moved, plain) > 1e-2 and distance(moved, moved_natively) < 1e-4
    for way in ("all", "block"):  # also where layers are run once more for the backward pass
        assert torch.equal(held(pipe, [MOVES], checkpointing=way)[0], moved)
    after = [vars(each.processor) for each in pipe.transformer.modules() if hasattr(each, "processor")]
    assert after == before


@pytest.mark.usefixtures("native_afterwards")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("name", "calls_in_a_step"), [("flux", 1), ("chroma", 2)])
def test_images_are_made_by_the_kernel_that_was_chosen(
    name: str, calls_in_a_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, original, calls = FAMILIES[name](), flex_attention.flex_attention, list[bool]()
    pipe.transformer.set_attention_backend("flex")

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return original(*args, **kwargs)

    monkeypatch.setattr(flex_attention, "flex_attention", counted)
    held(pipe, [MOVES], record=True)
    assert calls == [False] * STEPS * calls_in_a_step * len(pipe.transformer.attn_processors)


@pytest.mark.usefixtures("native_afterwards")
def test_a_kernel_that_cannot_be_edited_is_named() -> None:
    class Through(Edit):
        def weights(self, call: AttentionCall, weights: Tensor) -> Tensor:
            return weights

    pipe = FAMILIES["flux"]()
    pipe.transformer.set_attention_backend("flex")
    before = state(pipe)
    with pytest.raises(UnsupportedPipeline, match=r"FluxAttnProcessor.*cannot be edited.*set_attention_backend"):
        held(pipe, [AttentionEdit("joint", Through())])
    assert state(pipe)["processors"] == before["processors"]
