"""ToMe: the merge against encodings made by hand, batches, with and without a session.

Positions are written out; the toy tokenizer has one token for each word of these prompts but "skateboard" (two).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.errors import ControlConflict, NeedsSession, PromptUnknown, UnsupportedPipeline
from t2ictl.guidance.rules import StepSize
from t2ictl.processors import AttentionSegregation, TokenMerging
from t2ictl.processors.token_merging.groups import WordGroup
from t2ictl.settings.windows import Window
from tests.processors.token_merging.merging_cases import (
    ALWAYS,
    MERGE,
    OBJECTS,
    PROMPT,
    encoded,
    noise,
    paper,
    spied,
    with_control,
)
from tests.tiny import run, sd, sdxl

LONG = "a red skateboard and a cat with a hat"  # start a red skate board and a cat with a hat end: 0 to 11
UNLIKE = ("a dog and a cat", "a red circle", PROMPT, "a blue heart and a red apple and a green frog", OBJECTS)
pytestmark = pytest.mark.filterwarnings("ignore:token_merging does nothing:UserWarning")


def states_of(pipe: Any, prompt: Any, steps: int = 1, **settings: Any) -> list[Tensor]:
    """The conditional rows of every evaluation that makes the image."""
    seen, real = [], pipe.unet.forward

    def forward(sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **more: Any) -> Any:
        if len(sample) == 2:  # ours have no unconditional row
            seen.append(encoder_hidden_states[1:])
        return real(sample, timestep, encoder_hidden_states, **more)

    pipe.unet.forward = forward
    with t2ictl.controlled(pipe, [paper(**MERGE | settings)]):
        run(pipe, prompt, steps=steps)
    del pipe.unet.__dict__["forward"]
    return seen


# -- the merge --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [sd, sdxl])
@pytest.mark.parametrize("removal", ["compact", "zero", "mask"])
def test_rows_are_those_made_by_hand(build: Any, removal: Any) -> None:
    pipe = build(dtype=torch.float64)
    settings: dict[str, Any] = {"noun_weight": 1.1, "member_weight": 1.2, "end_tokens": "off"}
    r = encoded(pipe, LONG)
    board, cat, nothing = 1.2 * r[2] + 1.1 * (r[3] + r[4]), 1.1 * r[7] + 1.2 * r[10], torch.zeros_like(r[0])
    expected = {
        "compact": [r[0], r[1], board, r[5], r[6], cat, *r[11:], *[r[15]] * 5],
        "zero": [r[0], r[1], nothing, board, nothing, r[5], r[6], cat, *[nothing] * 3, *r[11:]],
        "mask": [r[0], r[1], r[2], board, r[4], r[5], r[6], cat, *r[8:]],
    }[removal]
    (found,) = states_of(pipe, LONG, removal=removal, **settings)
    torch.testing.assert_close(found[0], torch.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("removal", "start"), [("compact", 6), ("zero", 11)])
def test_end_tokens_are_those_of_the_prompt_without_members_from_end_to_end(removal: Any, start: int) -> None:
    """ "a skateboard and a cat" ends at 7: by absolute rows a padding row would come first."""
    pipe = sd(dtype=torch.float64)
    m = encoded(pipe, "a skateboard and a cat")
    (found,) = states_of(pipe, LONG, removal=removal)  # on by itself: the cat has a hat
    expected = torch.stack([m[min(7 + number, 15)] for number in range(16 - start)])
    torch.testing.assert_close(found[0, start:], expected, rtol=0, atol=1e-12)
    (own,) = states_of(pipe, LONG, removal=removal, prompt_kind="attribute")
    assert (own[0, start] - m[7]).abs().max() > 0.01 and torch.equal(own[0, :start], found[0, :start])


def test_end_tokens_may_come_later() -> None:
    pipe, m = sd(dtype=torch.float64), None
    m = encoded(pipe, "a circle and a square")
    first, second, third, fourth = states_of(pipe, PROMPT, steps=4, end_tokens="on", end_tokens_from=0.5)
    r = encoded(pipe, PROMPT)
    expected = torch.stack([r[0], r[1], r[2] + r[3], r[4], r[5], r[6] + r[7], *r[8:], r[15], r[15]])
    torch.testing.assert_close(first[0], expected, rtol=0, atol=1e-12)
    expected[6:] = m[6:]
    torch.testing.assert_close(third[0], expected, rtol=0, atol=1e-12)
    assert torch.equal(first, second) and torch.equal(third, fourth)


def test_without_a_merge_only_the_rows_of_the_nouns_move() -> None:
    pipe = sd(dtype=torch.float64)
    *_, last = states_of(pipe, PROMPT, merge=False, **ALWAYS | {"entropy_steps": 1})
    moved = (last[0] - encoded(pipe, PROMPT)).norm(dim=-1)
    assert (moved > 1e-6).nonzero().flatten().tolist() == [3, 7]


@pytest.mark.parametrize("build", [sd, sdxl])
def test_nothing_to_do_is_the_plain_image_bit_by_bit(build: Any) -> None:
    pipe = build()
    plain = run(pipe, PROMPT, steps=2)
    found, session = with_control(pipe, PROMPT, paper(strength=0.0), steps=2)
    assert torch.equal(found, plain) and session.trace == ()
    plain = run(pipe, "a dog and a cat", steps=2)
    with pytest.warns(UserWarning, match="token_merging does nothing for 'a dog and a cat': it found nothing to merge"):
        found, session = with_control(pipe, "a dog and a cat", paper(), steps=2)
    assert torch.equal(found, plain) and session.cost.extra_forwards == 0


@pytest.mark.parametrize("removal", ["compact", "zero", "mask"])
def test_strength_acts_in_proportion_from_nothing_on(removal: Any) -> None:
    pipe = sd(dtype=torch.float64)
    plain, away = run(pipe, PROMPT, steps=2, latents=noise(1)), []
    for strength in (1e-3, 1e-4, 1e-5):
        control = paper(removal=removal, strength=strength, **ALWAYS)
        found, _ = with_control(pipe, PROMPT, control, steps=2, latents=noise(1))
        away.append(float((found - plain).norm()))
    assert 0 < away[0] < 1
    assert away[0] / away[1] == pytest.approx(10, rel=0.05) and away[1] / away[2] == pytest.approx(10, rel=0.05)


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [7.5, 1.0])
@pytest.mark.parametrize("settings", [{}, {"removal": "mask", "window": Window()}], ids=str)
def test_rows_are_the_images_they_are_alone(settings: dict[str, Any], guidance: float) -> None:
    pipe, images = sd(dtype=torch.float64), 2
    control, latents = paper(**{"thresholds": (0.93,), "binding_steps": 1} | settings), noise(len(UNLIKE) * images)
    call: dict[str, Any] = {"steps": 2, "guidance_scale": guidance}
    together, session = with_control(pipe, list(UNLIKE), control, latents=latents, num_images_per_prompt=images, **call)
    plain = run(pipe, list(UNLIKE), latents=latents, num_images_per_prompt=images, **call)
    costs = set()
    for row in range(0, len(latents), images + 1):
        alone, own = with_control(pipe, UNLIKE[row // images], control, latents=latents[row : row + 1], **call)
        assert (together[row] - alone[0]).abs().max() < 1e-7
        assert ((together[row] - plain[row]).norm() > 0.01) == (row // images > 0)
        forwards, backwards = (
            [sum(float(getattr(each, kind)[place]) for each in one.trace) for one, place in ((session, row), (own, 0))]
            for kind in ("forwards", "backwards")
        )
        assert forwards[0] == forwards[1] and backwards[0] == backwards[1]
        costs.add(forwards[0])
    assert len(costs) > 2


@pytest.mark.parametrize("pooled", ["keep", "merged", "zero"])
def test_sdxl_rows_are_the_images_they_are_alone(pooled: Any) -> None:
    pipe, latents = sdxl(), noise(3).float()
    control, prompts = paper(pooled=pooled, window=Window(stop=0.5), thresholds=(0.0,), entropy_steps=1), UNLIKE[:3]
    together, _ = with_control(pipe, list(prompts), control, steps=2, latents=latents)
    plain = run(pipe, list(prompts), steps=2, latents=latents)
    for row, prompt in enumerate(prompts):
        alone, _ = with_control(pipe, prompt, control, steps=2, latents=latents[row : row + 1])
        plain_alone = run(pipe, prompt, steps=2, latents=latents[row : row + 1])
        allowed = 5 * (plain[row] - plain_alone[0]).abs().max() + 1e-3
        assert (together[row] - alone[0]).abs().max() <= allowed
        assert ((together[row] - plain[row]).abs().max() > 0.01) == (row > 0)


# -- without a session ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [sd, sdxl])
@pytest.mark.parametrize(
    "settings", [{}, {"removal": "zero", "pooled": "merged", "end_tokens": "on"}, {"pooled": "zero"}], ids=str
)
def test_embeds_equal_the_session_without_losses(build: Any, settings: dict[str, Any]) -> None:
    pipe, prompts = build(), list(UNLIKE[1:4])
    embeds = TokenMerging.embeds(pipe, prompts, **settings)
    assert set(embeds) == {"prompt_embeds"} | ({"pooled_prompt_embeds"} if build is sdxl else set())
    for guidance in (7.5, 1.0):
        call: dict[str, Any] = {"steps": 2, "guidance_scale": guidance, "latents": noise(3).float()}
        found, _ = with_control(pipe, prompts, paper(**MERGE, **settings), **call)
        torch.testing.assert_close(run(pipe, None, **embeds, **call), found, rtol=0, atol=1e-5)
        assert (found - run(pipe, prompts, **call)).abs().max() > 0.01


def test_what_embeddings_cannot_carry_needs_a_session() -> None:
    pipe = sd()
    for settings in ({"removal": "mask"}, {"end_tokens_from": 0.5}):
        with pytest.raises(NeedsSession, match="session"):
            TokenMerging.embeds(pipe, [PROMPT], **settings)


# -- in a session -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"end_tokens": "on", "end_tokens_from": 0.5}], ids=str)
def test_embeddings_made_inside_are_not_merged_twice(settings: dict[str, Any]) -> None:
    pipe = sd(dtype=torch.float64)
    with t2ictl.controlled(pipe, [paper(**settings)]) as session:
        expected = run(pipe, PROMPT, steps=2, latents=noise(1))
        losses = [each.total for each in session.trace]
        states, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True)
        embeds = {"prompt_embeds": states, "negative_prompt_embeds": negative}
        found = run(pipe, None, **embeds, steps=2, latents=noise(1))
        torch.testing.assert_close(torch.stack([each.total for each in session.trace]), torch.stack(losses))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def plain_embeds(pipe: Any) -> dict[str, Tensor]:
    states, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    return {"prompt_embeds": states, "negative_prompt_embeds": negative}


def test_embeddings_made_before_are_merged_by_their_named_prompt() -> None:
    pipe = sd(dtype=torch.float64)
    embeds = plain_embeds(pipe)
    expected, _ = with_control(pipe, PROMPT, paper(), steps=2, latents=noise(1))
    with t2ictl.controlled(pipe, [paper()], prompt=PROMPT):
        found = run(pipe, None, **embeds, steps=2, latents=noise(1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    with t2ictl.controlled(pipe, [paper()]), pytest.raises(PromptUnknown, match="TokenMerging"):
        run(pipe, None, **embeds, steps=1)


def test_a_pipeline_without_its_text_encoder_is_named() -> None:
    pipe = sd()
    embeds = plain_embeds(pipe)
    pipe.text_encoder = None
    with t2ictl.controlled(pipe, [paper()], prompt=PROMPT) as session:
        with pytest.raises(UnsupportedPipeline, match="no text encoder"):
            run(pipe, None, **embeds, steps=1)
    assert session.cost.forwards == 0


def test_two_of_them_conflict() -> None:
    pipe = sd()
    with t2ictl.controlled(pipe, [paper(), paper(entropy_steps=1)]):
        with pytest.raises(ControlConflict, match="the text states"):
            run(pipe, PROMPT, steps=1)


def test_segregation_beside_it_acts_on_the_composites_in_either_order() -> None:
    pipe = sd(dtype=torch.float64)
    merge, apart = paper(), AttentionSegregation(step=StepSize(scale=0.02, mode="normalized"))
    spies, made = spied(pipe), []
    for controls in ((merge, apart), (apart, merge)):
        found, session = with_control(pipe, PROMPT, *controls, steps=2, latents=noise(1))
        made.append(found)
        assert {each.moved for each in session.trace} == {"tokens", "latents"}
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], with_control(pipe, PROMPT, merge, steps=2, latents=noise(1))[0])
    # What it segregates at the first step, where nothing but the merge has acted: rows 2 and 5.
    seen = AttentionSegregation(smoothing="none")
    _, session = with_control(pipe, PROMPT, seen, paper(**MERGE), steps=1, latents=noise(1))
    with_control(pipe, PROMPT, paper(**MERGE), steps=1, latents=noise(1))
    maps = torch.cat([spy.probabilities[1] for spy in spies if spy.probabilities.shape[2] == 256]).mean(dim=0)
    shares = (100 * maps[:, 1:-1]).softmax(dim=-1)
    a, b = shares[:, 2 - 1], shares[:, 5 - 1]
    expected = torch.minimum(a, b).sum() / (a + b).sum()
    assert float(session.trace[0].terms["attention_segregation.segregation"]) == pytest.approx(float(expected))


def test_everything_is_put_back() -> None:
    pipe = sd()
    plain, processors, state = run(pipe, PROMPT, steps=1), dict(pipe.unet.attn_processors), torch.get_rng_state()
    parts = {"pipe": pipe, "unet": pipe.unet, "scheduler": pipe.scheduler}
    before = {name: set(vars(each)) for name, each in parts.items()}
    with_control(pipe, PROMPT, paper(**ALWAYS), steps=1)
    with t2ictl.controlled(pipe, [paper(groups=(WordGroup(noun="dog", members=("red",)),))]):
        with pytest.raises(t2ictl.errors.SpanNotFound):
            run(pipe, PROMPT, steps=1)
    assert {name: set(vars(each)) for name, each in parts.items()} == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(each is processors[name] for name, each in pipe.unet.attn_processors.items())
    assert all(each.requires_grad for each in pipe.unet.parameters())
    assert torch.equal(run(pipe, PROMPT, steps=1), plain)
