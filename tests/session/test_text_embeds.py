"""Text rows that a session moves: which reach the denoiser, and what extra passes for them see."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.controls.base import Plan, PlanContext
from t2ictl.errors import NonFiniteLoss
from t2ictl.guidance.text_objectives import EmbedLosses, EmbedObjective, EmbedStep, TextPasses
from t2ictl.losses.semantic_binding import semantic_binding_loss
from t2ictl.processors import TokenMerging
from t2ictl.settings.windows import Step, Window
from tests.tiny import run, scheduler, sd, sdxl

# The paper's method; by default nothing is merged and only the entropy moves rows.
paper = functools.partial(TokenMerging, merge=True, binding_steps=3)
PROMPT = "a red circle and a blue square"
COMPOSITES = (2, 5)  # start a [red circle] and a [blue square] end
ALWAYS: dict[str, Any] = {"window": Window(), "thresholds": (0.0,)}


@dataclass(kw_only=True)
class Pass:
    """One call of the denoiser."""

    sample: Tensor
    timestep: float
    states: Tensor
    keywords: dict[str, Any]
    result: Tensor | None = None


@contextmanager
def watched(pipe: Any) -> Iterator[list[Pass]]:
    """All calls of the denoiser, ours too, from below the session."""
    seen: list[Pass] = []
    original = pipe.unet.forward

    def forward(sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **keywords: Any) -> Any:
        seen.append(
            Pass(sample=sample, timestep=float(timestep), states=encoder_hidden_states.detach(), keywords=keywords)
        )
        result = original(sample, timestep, encoder_hidden_states, **keywords)
        seen[-1].result = result[0].detach()
        return result

    pipe.unet.forward = forward
    try:
        yield seen
    finally:
        del pipe.unet.__dict__["forward"]


def pictured(seen: list[Pass]) -> list[Pass]:
    """The passes that make the image: the last one of each evaluation."""
    return list({each.timestep: each for each in seen}.values())


def collector(latents: list[Tensor]) -> Any:
    """A callback that keeps the latents after each step."""

    def keep(pipe: Any, index: int, timestep: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
        latents.append(state["latents"].clone())
        return {}

    return keep


@pytest.mark.parametrize(
    "settings", [{"binding_steps": 0, "entropy_steps": 2}, {"binding_steps": 2, "entropy_steps": 0}], ids=str
)
@pytest.mark.parametrize("build", [sd, sdxl])
def test_only_composite_rows_move_and_no_unconditional_ones(build: Any, settings: dict[str, Any]) -> None:
    pipe = build(dtype=torch.float64)
    with watched(pipe) as seen, t2ictl.controlled(pipe, [paper(entropy_steps=0, binding_steps=0)]):
        run(pipe, PROMPT, steps=3)
    still = pictured(seen)[0].states
    rule = EmbedStep(final_scale=1.0)
    with watched(pipe) as seen, t2ictl.controlled(pipe, [paper(**ALWAYS | settings, step=rule)]):
        run(pipe, PROMPT, steps=3)
    before = still
    for each in pictured(seen):
        assert torch.equal(each.states[0], still[0])
        moved = (each.states[1] != still[1]).any(dim=-1).nonzero().flatten().tolist()
        assert tuple(moved) == COMPOSITES
        assert (each.states[1] != before[1]).any(dim=-1).sum() == 2  # they go on moving from where they were
        # Two steps of at most 0.02 of a row's length each in every evaluation.
        way = (each.states[1] - before[1]).norm(dim=-1) / still[1].norm(dim=-1)
        assert 0.001 < float(way.max()) < 0.045
        before = each.states
    assert len(pictured(seen)) == 3


def test_a_normalized_step_is_a_share_of_the_row_in_the_session_too() -> None:
    pipe = sd(dtype=torch.float64)
    rule = EmbedStep(scale=0.03, final_scale=1.0)
    with watched(pipe) as seen, t2ictl.controlled(pipe, [paper(entropy_steps=0, binding_steps=0)]):
        run(pipe, PROMPT, steps=1)
    still = pictured(seen)[0].states[1]
    control = paper(**ALWAYS, entropy_steps=1, binding_steps=0, step=rule, strength=1.0)
    with watched(pipe) as seen, t2ictl.controlled(pipe, [control]) as session:
        run(pipe, PROMPT, steps=1)
    way_K = (pictured(seen)[0].states[1] - still).norm(dim=-1)
    expected_K = torch.zeros_like(way_K)
    expected_K[list(COMPOSITES)] = 0.03 * still[list(COMPOSITES)].norm(dim=-1)
    torch.testing.assert_close(way_K, expected_K, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(session.trace[0].length, expected_K.norm()[None], rtol=1e-9, atol=0)


def test_moved_rows_lessen_the_losses_that_they_were_moved_for() -> None:
    pipe = sd(dtype=torch.float64)
    small = EmbedStep(scale=1e-4, final_scale=1.0)
    for kind, field in (("entropy", "entropy_steps"), ("semantic", "binding_steps")):
        counts = {"entropy_steps": 0, "binding_steps": 0} | {field: 3}
        with t2ictl.controlled(pipe, [paper(**ALWAYS, **counts, step=small, semantic_step=small)]) as session:
            run(pipe, PROMPT, steps=1)
        values = [float(each.terms[f"token_merging.{kind}"]) for each in session.trace]
        assert values[0] > values[1] > values[2]


class Broken(TokenMerging):
    """Token merging with losses that are not finite."""

    def plan(self, context: PlanContext) -> Plan:
        plan = super().plan(context)
        assert plan.text is not None
        objectives = tuple(replace(each, evaluate=self._broken(each)) for each in plan.text.objectives)
        return replace(plan, text=replace(plan.text, objectives=objectives))

    def _broken(self, objective: EmbedObjective) -> Any:
        def evaluate(passes: TextPasses, embeds_BTC: Tensor, step: Step) -> EmbedLosses:
            found = objective.evaluate(passes, embeds_BTC, step)
            return replace(found, terms={name: value * float("nan") for name, value in found.terms.items()})

        return evaluate


def test_a_loss_that_is_not_finite_raises_when_asked() -> None:
    pipe = sd()
    control = Broken(**ALWAYS, merge=True, entropy_steps=1, binding_steps=0)
    with pytest.raises(NonFiniteLoss, match="evaluation 0"):
        with t2ictl.controlled(pipe, [control], on_nonfinite="raise"):
            run(pipe, PROMPT, steps=1)
    with pytest.warns(RuntimeWarning, match="updates were skipped"):
        with t2ictl.controlled(pipe, [control]):
            made = run(pipe, PROMPT, steps=1)
    with t2ictl.controlled(pipe, [paper(entropy_steps=0, binding_steps=0)]):
        assert torch.equal(made, run(pipe, PROMPT, steps=1))


def phrase(pipe: Any, text: str) -> Tensor:
    ids = pipe.tokenizer(text, padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.no_grad():
        return pipe.text_encoder(ids)[0]


@pytest.mark.parametrize("name", ["euler", "ddim", "dpmpp_2m"])
@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_the_semantic_target_is_the_noise_of_the_images_own_latents_under_the_phrase(
    name: str, guidance: float
) -> None:
    """The official code followed latents of its own, away from the phrase, and scaled them again at every step."""
    pipe = sd(dtype=torch.float64)
    pipe.scheduler = scheduler(name, pipe)
    control = paper(**ALWAYS, binding_steps=1, entropy_steps=0)
    latents: list[Tensor] = [torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)]
    keep = {"callback_on_step_end": collector(latents)}
    with watched(pipe) as seen, t2ictl.controlled(pipe, [control]) as session:
        run(pipe, PROMPT, steps=3, latents=latents[0], guidance_scale=guidance, **keep)
    predicted = [each.result for each in seen if each.states.shape[1] == 1]  # under the composite rows alone
    assert len(predicted) == len(session.trace) == 3
    pipe.scheduler.set_timesteps(3)
    latents[0] = latents[0] * pipe.scheduler.init_noise_sigma
    texts = torch.cat([phrase(pipe, "a red circle"), phrase(pipe, "a blue square")])
    for index, t in enumerate(pipe.scheduler.timesteps):
        x = pipe.scheduler.scale_model_input(latents[index], t)
        with torch.no_grad():
            expected = pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=texts).sample
        # The official code takes 10000 times the mean.
        loss_B = 10_000 * semantic_binding_loss(predicted[index], expected, torch.tensor([0, 0]), rows=1)
        torch.testing.assert_close(session.trace[index].total, loss_B, rtol=1e-9, atol=0)
        pipe.scheduler.step(expected[:1], t, latents[index])  # only so that it counts on


@pytest.mark.parametrize("build", [sd, sdxl])
def test_all_passes_of_an_evaluation_see_the_same_latents_scaled_once(build: Any) -> None:
    pipe = build(dtype=torch.float64)
    pipe.scheduler = scheduler("euler", pipe)
    z: list[Tensor] = [torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)]
    keep = {"callback_on_step_end": collector(z)}
    with watched(pipe) as seen, t2ictl.controlled(pipe, [paper(**ALWAYS, entropy_steps=2, binding_steps=2)]):
        run(pipe, PROMPT, steps=3, latents=z[0], **keep)
    z[0] = z[0] * pipe.scheduler.init_noise_sigma
    times, sigmas = [float(t) for t in pipe.scheduler.timesteps], pipe.scheduler.sigmas.double()
    assert len(seen) == 3 * (1 + 2 + 2 + 1)  # target, two predictions, two of maps, the image
    for each in seen:
        index = times.index(each.timestep)
        expected = (z[index] / (1 + sigmas[index] ** 2).sqrt()).expand_as(each.sample)
        torch.testing.assert_close(each.sample, expected, rtol=1e-6, atol=0)


def test_passes_of_noise_touch_nothing_of_the_scheduler() -> None:
    pipe, states = sd(), []
    pipe.scheduler = scheduler("dpmpp_2m", pipe)

    def note(*_: Any) -> None:
        own = {key: list(value) if isinstance(value, list) else value for key, value in vars(pipe.scheduler).items()}
        states.append({key: value for key, value in own.items() if key != "step"})

    handle = pipe.unet.conv_in.register_forward_pre_hook(note)  # before each pass, ours and the pipeline's
    run(pipe, PROMPT, steps=2)
    plain = states.copy()
    states.clear()
    with watched(pipe) as seen, t2ictl.controlled(pipe, [paper(**ALWAYS, entropy_steps=0, binding_steps=2)]) as session:
        run(pipe, PROMPT, steps=2)
    handle.remove()
    # For each step a target and two predictions, of two groups, and the pass that makes the image.
    assert [len(each.sample) for each in seen] == [2] * 8 and len(states) == 8
    assert session.cost.extra_forwards == 12 and session.cost.backwards == 8
    for number in range(2):
        first, *later = states[4 * number : 4 * number + 4]
        assert all(each.keys() == first.keys() for each in later)
        assert all(each[key] is first[key] or each[key] == first[key] for each in later for key in first)
        numbers = {key: value for key, value in plain[number].items() if isinstance(value, int | bool)}
        assert numbers and {key: first[key] for key in numbers} == numbers  # it counts as in the plain run


def test_pooled_states_are_nothing_and_sizes_are_real_in_passes_of_noise() -> None:
    pipe = sdxl()
    with watched(pipe) as seen, t2ictl.controlled(pipe, [paper(**ALWAYS, entropy_steps=0, binding_steps=1)]):
        run(pipe, PROMPT, steps=1)
    *noises, main = seen
    assert [each.states.shape[1] for each in noises] == [16, 1]
    for each in noises:
        added = each.keywords["added_cond_kwargs"]
        assert not added["text_embeds"].any() and added["text_embeds"].shape[0] == 2
        assert torch.equal(added["time_ids"], main.keywords["added_cond_kwargs"]["time_ids"][1:].expand(2, -1))
    assert main.keywords["added_cond_kwargs"]["text_embeds"][1].any()


def test_the_mask_of_the_call_reaches_our_passes_for_maps_and_not_those_of_noise() -> None:
    pipe = sd()
    with (
        watched(pipe) as seen,
        t2ictl.controlled(pipe, [paper(**ALWAYS, removal="mask", entropy_steps=1, binding_steps=1)]),
    ):
        run(pipe, PROMPT, steps=1)
    target, lone, maps, image = seen
    assert target.keywords.get("encoder_attention_mask") is None and lone.keywords.get("encoder_attention_mask") is None
    own = [float(place not in (2, 6)) for place in range(16)]
    assert maps.keywords["encoder_attention_mask"].tolist() == [own]
    assert image.keywords["encoder_attention_mask"].tolist() == [[1.0] * 16, own]


@pytest.mark.parametrize("build", [sd, sdxl])
def test_a_pass_under_one_row_is_that_of_the_denoiser_itself(build: Any) -> None:
    pipe = build(dtype=torch.float64)
    with watched(pipe) as seen, t2ictl.controlled(pipe, [paper(**ALWAYS, entropy_steps=0, binding_steps=1)]):
        run(pipe, PROMPT, steps=1)
    (lone,) = [each for each in seen if each.states.shape[1] == 1]
    with torch.no_grad():
        plain = pipe.unet(lone.sample, lone.timestep, lone.states, **lone.keywords | {"return_dict": False})[0]
    torch.testing.assert_close(lone.result, plain, rtol=0, atol=1e-10)
