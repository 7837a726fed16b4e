"""Token merging on what users really run: other pipelines of the families, placeholders, an image prompt, LoRA."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import t2ictl
from t2ictl.errors import BadSetting
from t2ictl.guidance.text_objectives import EmbedStep
from t2ictl.processors.token_merging.control import TokenMerging
from t2ictl.settings.windows import Window
from tests import tiny
from tests.session.pipeline_cases import PIPELINES, add_lora, give_image_prompt

PROMPT = "a red cat and a blue dog"
MERGE = TokenMerging(merge=True, entropy_steps=0, binding_steps=0)
# By default steps shrink to nothing at the end of the schedule.
PAPER = TokenMerging(
    merge=True,
    entropy_steps=1,
    binding_steps=1,
    thresholds=(0.0,),
    window=Window(),
    step=EmbedStep(scale=0.02, final_scale=1.0),
)


def images(pipe: Any, prompt: str = PROMPT, **call: Any) -> dict[str, torch.Tensor]:
    """The plain image, the merged one and the one whose rows moved, and the plain one once more."""
    found = {"plain": tiny.run(pipe, prompt, steps=2, **call)}
    for name, control in (("merged", MERGE), ("moved", PAPER)):
        with t2ictl.controlled(pipe, [control]) as session:
            found[name] = tiny.run(pipe, prompt, steps=2, **call)
    assert {entry.moved for entry in session.trace} == {"tokens"}
    assert all(float(entry.length.min()) > 0 for entry in session.trace)
    found["again"] = tiny.run(pipe, prompt, steps=2, **call)
    return found


def check(found: dict[str, torch.Tensor]) -> None:
    assert torch.equal(found["plain"], found["again"])
    assert torch.isfinite(found["moved"]).all()
    for one, other in (("plain", "merged"), ("merged", "moved")):
        assert float((found[one] - found[other]).abs().max()) > 1e-4


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_of_the_families(name: str) -> None:
    pipe = PIPELINES[name]()
    check(images(pipe))


def test_image_prompt() -> None:
    pipe = tiny.sd()
    check(images(pipe, **give_image_prompt(pipe)))


def test_lora() -> None:
    pipe = tiny.sd()
    add_lora(pipe)
    check(images(pipe, cross_attention_kwargs={"scale": 0.5}))


def test_phrases_with_placeholders_are_encoded_as_the_user_writes_them() -> None:
    pipe = tiny.sd()
    vectors = torch.randn(2, tiny.TEXT_WIDTH, generator=tiny.generator(5))
    pipe.load_textual_inversion({"<toy>": vectors}, token="<toy>")
    seen: list[list[str]] = []
    encode = pipe.encode_prompt

    @functools.wraps(encode)
    def spy(prompt: Any, *rest: Any, **more: Any) -> Any:
        seen.append(list(prompt) if isinstance(prompt, list) else [prompt])
        return encode(prompt, *rest, **more)

    pipe.encode_prompt = spy
    with t2ictl.controlled(pipe, [PAPER]):
        tiny.run(pipe, "a red <toy> and a blue dog", steps=1)
    assert seen[0] == ["a red <toy> and a blue dog"]
    assert seen[1] == ["a red <toy>", "a blue dog"]


def test_masks_by_half_are_refused_in_half_precision() -> None:
    pipe = tiny.sd(dtype=torch.bfloat16)
    half, whole = (TokenMerging(merge=True, removal="mask", strength=strength) for strength in (0.5, 1.0))
    with t2ictl.controlled(pipe, [half]), pytest.raises(BadSetting, match="strength 0.5"):
        tiny.run(pipe, PROMPT, steps=1)
    with t2ictl.controlled(pipe, [whole]):
        assert torch.isfinite(tiny.run(pipe, PROMPT, steps=1)).all()
