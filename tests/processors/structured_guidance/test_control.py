"""Structured guidance: every layer against attention written out context by context, and the rows that stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.passes import ActivePass, DenoiserPass
from t2ictl.attention.processor import ControlledAttention
from t2ictl.controls.base import PlanContext
from t2ictl.errors import NeedsSession, NoLayerMatched, UnsupportedPipeline
from t2ictl.families import find_adapter
from t2ictl.processors import StructuredGuidance
from t2ictl.processors.structured_guidance.edits import phrase_weights
from t2ictl.settings.windows import Step, Window
from t2ictl.standalone.by_content import MatchedLayout, RowMatcher
from tests.processors.structured_guidance.structured_cases import (
    NEGATIVES,
    NESTED,
    NONE,
    PHRASES,
    PROMPT,
    PROMPTS,
    Layer,
    Loop,
    controlled_run,
    encoded,
    heard_in,
    layers,
    noise,
    put,
    recipes,
)
from tests.tiny import run, sd, sd2, sdxl

pytestmark = pytest.mark.filterwarnings("ignore:structured_guidance does nothing:UserWarning")

SETTINGS: list[dict[str, Any]] = [
    *({"strength": strength} for strength in (0.5, 1.0, 2.0)),
    *({"weighting": rule, "strength": strength} for rule in ("token", "depth") for strength in (1.0, 0.5)),
    *({"mode": "keys", "strength": strength} for strength in (0.5, 1.0, 1.5)),
    *({"mode": "keys", "conjunction": "paper", "strength": strength} for strength in (1.0, 0.5)),
    *({"mode": "keys", "aliasing": True, "strength": strength} for strength in (1.0, 1.5)),
    {"mode": "keys", "aliasing": True, "conjunction": "paper"},
    *({"positions": "prompt", "mode": mode} for mode in ("values", "keys")),
]
BOTH: list[dict[str, Any]] = [{}, {"mode": "keys"}]


def same(found: Tensor, expected: Tensor) -> None:
    """Equal to 1e-6 of the largest entry, or to 1e-6 where all are below 1."""
    largest = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * largest)


def check(heard: list[Layer], loop: Loop, edited: set[int], rows: int) -> None:
    """Edited rows are those of the loop and unlike the plain ones; all others are the plain ones bit by bit."""
    assert heard and {len(each.out) for each in heard} == {rows}
    for each in heard:
        same(each.out, each.by(loop))
        for row in range(rows):
            if row in edited:
                assert (each.out[row] - each.plain[row]).abs().max() > 1e-3
            else:
                assert torch.equal(each.out[row], each.plain[row])


# -- the arithmetic of a layer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("build", [sd, sdxl])
def test_layers_are_those_of_the_loop_and_other_rows_the_plain_ones(build: Any, settings: dict[str, Any]) -> None:
    pipe = build()
    check(heard_in(pipe, PROMPTS, settings), Loop(recipes(pipe, **settings)), {3, 5}, 6)


@pytest.mark.parametrize("settings", BOTH, ids=str)
def test_layers_without_guidance_and_of_several_images(settings: dict[str, Any]) -> None:
    pipe = sd2()
    loop = Loop(recipes(pipe, **settings))
    check(heard_in(pipe, PROMPTS, settings, guidance_scale=1.0), loop, {0, 2}, 3)
    check(heard_in(pipe, PROMPTS, settings, num_images_per_prompt=2), loop, {6, 7, 10, 11}, 12)


@pytest.mark.parametrize("settings", BOTH, ids=str)
@pytest.mark.parametrize("build", [sd, sdxl])
def test_the_branch_says_whose_phrases_count(build: Any, settings: dict[str, Any]) -> None:
    pipe, call = build(), {"negative_prompt": NEGATIVES}
    for branch, edited, prompts in (
        ("cond", {3, 5}, PROMPTS),
        ("uncond", {0, 2}, NEGATIVES),
        ("both", {0, 2, 3, 5}, PROMPTS + NEGATIVES),
    ):
        loop = Loop(recipes(pipe, prompts, **settings))
        own = settings | {"branch": branch, "levels": "lowest"}  # of the phrases found, those of negative prompts
        check(heard_in(pipe, PROMPTS, own, **call), loop, edited, 6)


def test_one_negative_prompt_stands_for_all_and_without_one_nothing_is_edited() -> None:
    pipe, settings = sdxl(), {"branch": "uncond", "levels": "lowest"}
    heard = heard_in(pipe, [PROMPT] * 3, settings, negative_prompt=NEGATIVES[0])
    check(heard, Loop(recipes(pipe, NEGATIVES)), {0, 1, 2}, 6)
    check(heard_in(pipe, PROMPTS, settings), Loop([]), set(), 6)
    check(heard_in(pipe, PROMPTS, settings | {"branch": "both"}), Loop(recipes(pipe)), {3, 5}, 6)


@pytest.mark.parametrize("settings", BOTH, ids=str)
@pytest.mark.parametrize("build", [sd, sdxl])
def test_images_are_those_of_the_loop(build: Any, settings: dict[str, Any]) -> None:
    """Three steps add rounding up: 1e-4 holds for the latents where 2e-6 holds for a layer."""
    pipe = build()
    found = controlled_run(pipe, PROMPTS, settings, steps=3)
    plain = run(pipe, PROMPTS, steps=3)
    put(pipe, Loop(recipes(pipe, **settings)))
    torch.testing.assert_close(found, run(pipe, PROMPTS, steps=3), rtol=0, atol=1e-4)
    assert (found - plain)[[0, 2]].abs().amax(dim=(1, 2, 3)).min() > 0.01


class Keep(torch.nn.Module):
    """A projection that keeps what it was given."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.weight = inner, inner.weight
        self.got: list[Tensor] = []

    def forward(self, context: Tensor) -> Tensor:
        self.got.append(context)
        made: Tensor = self.inner(context)
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", [{"strength": 1.0}, {"mode": "keys"}], ids=str)
def test_edits_land_on_token_rows_and_every_other_row_of_the_value_is_the_prompts(
    settings: dict[str, Any], dtype: torch.dtype
) -> None:
    pipe = sd(dtype=dtype)
    attn = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    attn.to_v = keep = Keep(attn.to_v)
    heard = heard_in(pipe, PROMPTS, settings)
    value, share = keep.got[0], (1.0 if settings.get("mode") else 1 / 3)
    context = next(each.context for each in heard if each.attn is attn)
    changed = (value != context).any(dim=-1)
    assert [each.nonzero().flatten().tolist() for each in changed] == [
        *([],) * 3,
        [3, 4, 5, 7, 8, 9],
        [],
        [3, 4, 5, 6, 7, 9, 10],
    ]
    for place, phrase in ((3, "a red circle"), (7, "a blue square")):
        own = encoded(pipe, phrase)[1:4]
        expected = share * own + (1 - share) * context[3, place : place + 3]
        torch.testing.assert_close(value[3, place : place + 3], expected, rtol=0, atol=1e-6)
    assert (value != context).all(dim=-1)[3].sum() > 3  # whole rows, not some features of all of them


MASKS = {"keys": (4, 1, 16), "every place": (4, 15, 16)}


@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("settings", [{}, {"mode": "keys"}, {"mode": "keys", "aliasing": True}], ids=str)
def test_a_mask_of_the_layer_counts_in_every_map(settings: dict[str, Any], shape: tuple[int, ...]) -> None:
    pipe, prompts = sd(), [NESTED, PROMPT]
    adapter = find_adapter(pipe)
    batch = BatchLayout.from_counts(prompts=2, images_per_prompt=1, guided=True)
    context = PlanContext(adapter=adapter, prompts=tuple(adapter.parse((each,)) for each in prompts), batch=batch)
    ((layers, edit),) = StructuredGuidance(phrases=(PHRASES[2], PHRASES[0]), **settings).plan(context).edits
    attn, states = pipe.unet.get_submodule(layers[0].module), [encoded(pipe, each) for each in ("", "", *prompts)]
    source = torch.Generator().manual_seed(1)
    mask = 3 * torch.randn(shape, generator=source)
    hidden = torch.randn(4, 15, attn.to_q.in_features, generator=source)
    active_pass = ActivePass()
    active_pass.begin(
        DenoiserPass(
            batch=batch,
            latent_size=(3, 5),
            step=Step(index=0, total=1, timestep=1.0),
            edits={layers[0].address: [edit]},
        )
    )
    given: dict[str, Any] = {"encoder_hidden_states": torch.stack(states), "attention_mask": mask}
    with torch.no_grad():
        found = ControlledAttention(layers[0], attn.processor, active_pass)(attn, hidden, **given)
        expected = Loop(recipes(pipe, prompts, **settings))(attn, hidden, **given)
        assert (
            expected - Loop(recipes(pipe, prompts, **settings))(attn, hidden, given["encoder_hidden_states"])
        ).abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("official", [[0, 1 / 4, 1 / 4, 1 / 4, 0], [0, 0, 1 / 4, 1 / 4, 0], [0, 0, 0, 1 / 4, 0]]),
        ("token", [[0, 1 / 2, 1 / 3, 1 / 4, 0], [0, 0, 1 / 3, 1 / 4, 0], [0, 0, 0, 1 / 4, 0]]),
        # 1/3, 1/2 and 1 by level, each over 1 and the sum of those that hold the token: 4/3, 11/6, 17/6.
        ("depth", [[0, 1 / 4, 2 / 11, 2 / 17, 0], [0, 0, 3 / 11, 3 / 17, 0], [0, 0, 0, 6 / 17, 0]]),
    ],
)
def test_weights_by_hand(rule: Any, expected: list[list[float]]) -> None:
    holds = torch.tensor(
        [[False, True, True, True, False], [False, False, True, True, False], [False] * 3 + [True, False]]
    )
    found = phrase_weights(holds, torch.tensor([2, 1, 0]), rule)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", ["official", "token", "depth"])
def test_weights_leave_the_prompt_its_share_and_are_zero_outside(rule: Any) -> None:
    source = torch.Generator().manual_seed(0)
    for phrases in range(1, 12):
        holds = torch.rand(phrases, 20, generator=source) < 0.5
        weights = phrase_weights(holds, torch.randint(0, 4, (phrases,), generator=source), rule)
        assert weights.sum(dim=0).max() < 1 and (weights[~holds] == 0).all() and (weights[holds] > 0).all()


# -- where and when it acts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"strength": 0.0}, {"phrases": ((), (), ())}, {"phrases": (NESTED, "a bird")}])
@pytest.mark.parametrize("build", [sd, sdxl])
def test_without_strength_or_phrases_it_is_the_plain_image(build: Any, settings: dict[str, Any]) -> None:
    pipe = build()
    prompts = PROMPTS
    if settings.get("phrases") == (NESTED, "a bird"):  # nothing but the whole of them
        prompts, settings = [NESTED, NONE], {"phrases": ((NESTED,), ("a bird",))}
    before = dict(pipe.unet.attn_processors)
    with t2ictl.controlled(pipe, [StructuredGuidance(**{"phrases": PHRASES} | settings)]) as session:
        found = run(pipe, prompts, steps=2)
        assert all(each is before[name] for name, each in pipe.unet.attn_processors.items())
    assert torch.equal(found, run(pipe, prompts, steps=2)) and session.cost.extra_forwards == 0


@pytest.mark.parametrize("mode", ["values", "keys"])
def test_steps_outside_the_window_and_layers_outside_the_layers_are_the_processors_own(mode: Any) -> None:
    pipe, called = sd(), []
    settings: dict[str, Any] = {"mode": mode, "window": Window(start=0.5, stop=0.75), "layers": ("down.0.*", "mid")}
    inside = ("down_blocks.0", "mid_block")

    class Counted(type(pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.processor)):  # type: ignore[misc]
        def __call__(self, attn: Any, *rest: Any, **more: Any) -> Any:
            called.append(attn)
            return super().__call__(attn, *rest, **more)

    put(pipe, Counted())
    heard = heard_in(pipe, PROMPTS, settings, steps=4)
    own = len(heard) // 4
    edited = [each for step, each in enumerate(heard) if step // own == 2 and each.name.startswith(inside)]
    assert edited and len(called) == len(heard) - len(edited)
    loop = Loop(recipes(pipe, mode=mode))
    for each in heard:
        is_edited = any(each is other for other in edited)
        assert torch.equal(each.out, each.plain) != is_edited
        if is_edited:
            same(each.out, each.by(loop))


def test_layers_that_are_nowhere_or_normalize_the_text_are_named() -> None:
    with pytest.raises(NoLayerMatched):
        controlled_run(sd(), PROMPTS, {"layers": ("self",)})
    pipe = sd()
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    layer.norm_cross = torch.nn.LayerNorm(32)
    controlled_run(pipe, PROMPTS, {"layers": ("down",)}, steps=1)
    with pytest.raises(UnsupportedPipeline, match="normalizes the text states"):
        controlled_run(pipe, PROMPTS, {})


def test_fields_of_the_other_mode_have_no_effect() -> None:
    pipe = sd()
    for mode, others in (("keys", {"weighting": "token"}), ("values", {"aliasing": True, "conjunction": "paper"})):
        found = controlled_run(pipe, PROMPTS, {"mode": mode}, steps=1)
        assert torch.equal(controlled_run(pipe, PROMPTS, {"mode": mode, **others}, steps=1), found)


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [7.5, 1.0])
@pytest.mark.parametrize("settings", BOTH, ids=str)
@pytest.mark.parametrize("build", [sd, sdxl])
def test_rows_are_the_images_they_are_alone(build: Any, settings: dict[str, Any], guidance: float) -> None:
    pipe, latents = build(), noise(6)
    call: dict[str, Any] = {"steps": 2, "guidance_scale": guidance}
    both = call | {"latents": latents, "num_images_per_prompt": 2}
    together, plain = controlled_run(pipe, PROMPTS, settings, **both), run(pipe, PROMPTS, **both)
    for row in (0, 1, 3, 4):
        own = call | {"latents": latents[row : row + 1]}
        mine = settings | {"phrases": (PHRASES[row // 2],)}
        alone = controlled_run(pipe, PROMPTS[row // 2], mine, **own)
        allowed = 5 * (plain[row] - run(pipe, PROMPTS[row // 2], **own)[0]).abs().max() + 1e-3
        assert (together[row] - alone[0]).abs().max() <= allowed
        assert ((together[row] - plain[row]).abs().max() > 0.01) == (row // 2 != 1)
    assert (together[2:4] - plain[2:4]).abs().max() <= 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"mode": "keys", "strength": 0.5}], ids=str)
def test_half_precision_rounds_and_no_more(settings: dict[str, Any], dtype: torch.dtype) -> None:
    """A layer is off by some roundings; the image is as close to float32 as the plain one."""
    pipe, half, small = sd(), sd(dtype=dtype), torch.finfo(dtype).eps
    loop = Loop(recipes(half, **settings))
    for each in heard_in(half, PROMPTS, settings, latents=noise(3, dtype)):
        assert each.out.dtype == dtype and torch.equal(each.out[[0, 1, 2, 4]], each.plain[[0, 1, 2, 4]])
        expected, plain = each.by(loop).float(), each.plain.float()
        torch.testing.assert_close(each.out.float(), expected, rtol=0, atol=8 * small * float(expected.abs().max()))
        assert (each.out.float() - plain)[[3, 5]].abs().max() > 0.05
    off = [
        (run_it(half, PROMPTS, *more, steps=2, latents=noise(3, dtype)).float() - exact).norm()
        for run_it, more in ((run, ()), (controlled_run, (settings,)))
        for exact in [run_it(pipe, PROMPTS, *more, steps=2, latents=noise(3))]
    ]
    assert off[1] < 3 * off[0]


def test_pooled_states_stay() -> None:
    pipe, seen = sdxl(), []
    real = pipe.unet.forward

    def forward(*args: Any, added_cond_kwargs: Any, **more: Any) -> Any:
        seen.append(added_cond_kwargs["text_embeds"])
        return real(*args, added_cond_kwargs=added_cond_kwargs, **more)

    pipe.unet.forward = forward
    controlled_run(pipe, PROMPTS, {}, steps=1)
    run(pipe, PROMPTS, steps=1)
    assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("settings", BOTH, ids=str)
def test_under_inference_mode_the_image_is_the_same(settings: dict[str, Any]) -> None:
    pipe = sd()
    expected = controlled_run(pipe, PROMPTS, settings)
    with torch.inference_mode():
        assert torch.equal(controlled_run(pipe, PROMPTS, settings), expected)


# -- without a session ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [7.5, 1.0])
@pytest.mark.parametrize("settings", [*BOTH, {"weighting": "depth", "layers": ("up",)}], ids=str)
@pytest.mark.parametrize("build", [sd, sdxl])
def test_processors_equal_the_session(build: Any, settings: dict[str, Any], guidance: float) -> None:
    pipe, call = build(), {"steps": 2, "guidance_scale": guidance, "num_images_per_prompt": 2}
    plain, expected = run(pipe, PROMPTS, **call), controlled_run(pipe, PROMPTS, settings, **call)
    before = dict(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor(StructuredGuidance.attn_processors(pipe, PROMPTS, phrases=PHRASES, **settings))
    torch.testing.assert_close(run(pipe, PROMPTS, **call), expected, rtol=0, atol=1e-5)
    assert (expected - plain).abs().max() > 0.01
    pipe.unet.set_attn_processor(dict(before))
    assert all(each is before[name] for name, each in pipe.unet.attn_processors.items())
    assert torch.equal(run(pipe, PROMPTS, **call), plain)


@pytest.mark.parametrize("settings", BOTH, ids=str)
def test_rows_of_foreign_prompts_pass_through_processors(settings: dict[str, Any]) -> None:
    pipe, foreign = sd(), ["a yellow heart and a black cat", NESTED, PROMPT]
    plain = run(pipe, foreign[0])
    pipe.unet.set_attn_processor(StructuredGuidance.attn_processors(pipe, PROMPTS, phrases=PHRASES, **settings))
    with layers(pipe) as heard:
        run(pipe, foreign, steps=1)
    check(heard, Loop(recipes(pipe, **settings)), {4, 5}, 6)
    assert torch.equal(run(pipe, foreign[0]), plain)


def test_what_a_processor_cannot_know_needs_a_session() -> None:
    pipe, wrong = sd(), ({"window": Window(stop=0.5)}, {"branch": "uncond"}, {"branch": "both"})
    for settings in wrong:
        with pytest.raises(NeedsSession, match="session"):
            StructuredGuidance.attn_processors(pipe, [PROMPT], phrases=PHRASES[0], **settings)


def test_lanes_are_matched_once_for_a_tensor_and_anew_for_another() -> None:
    pipe, asked = sd(), []
    match = RowMatcher(torch.stack([encoded(pipe, each) for each in PROMPTS]))

    def counted(context: Tensor) -> Any:
        asked.append(context)
        return match(context)

    batch, first = MatchedLayout(counted), torch.stack([encoded(pipe, each) for each in ("", NESTED, PROMPT)])
    found = [batch(first), batch(first)]
    assert len(asked) == 1 and found[0] is found[1]
    assert [(row.image, row.prompt, row.role) for row in found[0].rows] == [
        (0, 0, "uncond"),
        (1, 2, "cond"),
        (2, 0, "cond"),
    ]
    assert batch(first.flip(0).contiguous()).indices("cond") == (0, 1)
    assert batch(first.clone()) == found[0] and len(asked) == 3
    assert batch(first) == found[0] and batch(first.copy_(first.flip(0))).indices("cond") == (0, 1)
