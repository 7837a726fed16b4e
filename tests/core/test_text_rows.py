"""What moves text rows: the inner loop by hand, which rows reach the denoiser, extra passes, one key alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor

import t2ictl
from t2ictl.attention.processor import Inputs, lone_key_attention
from t2ictl.errors import NonFiniteLoss
from t2ictl.guidance.text_objectives import EmbedLosses, EmbedObjective, EmbedStep
from t2ictl.guidance.text_updates import perturb_embeds, update_embeds
from t2ictl.processors import TokenMerging
from t2ictl.processors.token_merging import control as token_merging
from t2ictl.session.extra_passes import ExtraPasses
from t2ictl.settings.windows import Step, Window
from tests.tiny import run, scheduler, sd, sdxl

# The paper's method; by default nothing is merged and only the entropy moves rows.
paper = functools.partial(TokenMerging, merge=True, binding_steps=3)

PROMPT = "a red circle and a blue square"
COMPOSITES = (2, 5)  # start a [red circle] and a [blue square] end
FIRST = Step(index=0, total=11, timestep=900.0)
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


# -- the inner loop by hand -------------------------------------------------------------------------------------------


def test_a_raw_step_is_the_gradient_times_the_length() -> None:
    rule, embeds_BTC = EmbedStep(scale=3.0, final_scale=0.0, mode="raw"), torch.randn(2, 3, 4)
    gradient_BKC, mask_BK = torch.randn(2, 3, 4), torch.tensor([[True, False, False], [False, True, True]])
    step = Step(index=5, total=11, timestep=1.0)  # half of the way: 3 (1 - 5/10)
    moved_BKC = rule.move(embeds_BTC, gradient_BKC, mask_BK, step, strength=0.5)
    torch.testing.assert_close(moved_BKC, -0.75 * gradient_BKC * mask_BK[..., None])


def test_a_normalized_step_moves_each_row_by_a_share_of_its_length() -> None:
    rule = EmbedStep(scale=0.1, final_scale=0.5)
    embeds_BTC = torch.tensor([[[3.0, 4.0], [0.0, 2.0], [1.0, 1.0]]])
    gradient_BKC = torch.tensor([[[0.0, 1e-30], [-7.0, 0.0], [0.0, 0.0]]])
    step = Step(index=10, total=11, timestep=1.0)  # 0.05 of each length at the last step
    moved_BKC = rule.move(embeds_BTC, gradient_BKC, torch.ones(1, 3, dtype=torch.bool), step)
    torch.testing.assert_close(moved_BKC, torch.tensor([[[0.0, -0.25], [0.1, 0.0], [0.0, 0.0]]]))


def objective(evaluate: Any, most: int = 3, rule: EmbedStep | None = None) -> EmbedObjective:
    mask_BK = torch.tensor([[True, False], [True, True], [True, True]])
    return EmbedObjective(
        name="mine",
        layers=(),
        evaluate=evaluate,
        movable=mask_BK,
        max_updates=most,
        window=Window(),
        step_size=rule or EmbedStep(scale=0.25, mode="raw"),
    )


def bowl(done: Any) -> Any:
    """Loss: half the square of the rows; three images."""

    def evaluate(passes: Any, embeds_BTC: Tensor, step: Step) -> EmbedLosses:
        loss_B = 0.5 * embeds_BTC.square().sum(dim=(1, 2))
        one_B = torch.ones(3)
        return EmbedLosses(
            terms={"bowl": loss_B}, done=done(loss_B.detach()), forwards=one_B, backwards=2 * one_B, rows=len(one_B)
        )

    return evaluate


def test_each_image_moves_until_it_is_good_enough_and_its_other_rows_never() -> None:
    start_BKC = torch.tensor([[[4.0], [1.0]], [[4.0], [4.0]], [[0.5], [0.5]]])
    found = update_embeds(start_BKC, objective(bowl(lambda loss_B: loss_B < 5)), None, FIRST, torch.float32)  # type: ignore[arg-type]
    # Three quarters are left after a step. Losses: 8.5, 5, 3.03 / 16, 9, 5.06 / 0.25.
    expected = torch.tensor([[[2.25], [1.0]], [[1.6875], [1.6875]], [[0.5], [0.5]]])
    torch.testing.assert_close(found.rows, expected)
    lengths = torch.stack([each.length for each in found.trace])
    torch.testing.assert_close(
        lengths, torch.tensor([[1.0, 2**0.5, 0.0], [0.75, 0.75 * 2**0.5, 0.0], [0.0, 0.5625 * 2**0.5, 0.0]])
    )
    assert [each.forwards.tolist() for each in found.trace] == [[1, 1, 1], [1, 1, 0], [1, 1, 0]]  # type: ignore[union-attr]
    assert [each.backwards.tolist() for each in found.trace] == [[2, 2, 0], [2, 2, 0], [0, 2, 0]]  # type: ignore[union-attr]
    assert all(each.moved == "tokens" and "mine.bowl" in each.terms for each in found.trace)
    assert torch.equal(start_BKC, torch.tensor([[[4.0], [1.0]], [[4.0], [4.0]], [[0.5], [0.5]]]))


def test_nothing_moves_where_all_is_good_enough() -> None:
    start_BKC = torch.ones(3, 2, 1)
    found = update_embeds(start_BKC, objective(bowl(lambda loss_B: loss_B < 5)), None, FIRST, torch.float32)  # type: ignore[arg-type]
    assert torch.equal(found.rows, start_BKC) and len(found.trace) == 1
    assert not found.trace[0].length.any() and not found.trace[0].skipped.any()


def test_only_a_image_whose_loss_is_not_finite_stays() -> None:
    def evaluate(passes: Any, embeds_BTC: Tensor, step: Step) -> EmbedLosses:
        loss_B = embeds_BTC.sum(dim=(1, 2)) * torch.tensor([1.0, float("nan"), 1.0])
        no_B = torch.zeros(3, dtype=torch.bool)
        return EmbedLosses(terms={"sum": loss_B}, done=no_B, forwards=torch.ones(3), backwards=torch.ones(3), rows=3)

    start_BKC = torch.ones(3, 2, 1)
    found = update_embeds(start_BKC, objective(evaluate, most=2), None, FIRST, torch.float32)  # type: ignore[arg-type]
    assert found.rows[:, :, 0].tolist() == [[0.5, 1.0], [1.0, 1.0], [0.5, 0.5]]
    assert [each.skipped.tolist() for each in found.trace] == [[False, True, False], [False, False, False]]


def test_pushes_add_up_and_are_traced_as_tokens() -> None:
    embeds_BTC = torch.zeros(2, 2, 2)
    found = perturb_embeds(embeds_BTC, [torch.ones(2, 2, 2), torch.full((2, 2, 2), 0.5)], FIRST)
    assert torch.equal(found.rows, torch.full((2, 2, 2), 1.5))
    assert [each.length.tolist() for each in found.trace] == [[2.0, 2.0], [1.0, 1.0]]
    assert all(each.moved == "tokens" for each in found.trace)


# -- which rows reach the denoiser ------------------------------------------------------------------------------------


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
    for kind in ("entropy", "semantic"):
        counts = {"entropy_steps": 0, "binding_steps": 0} | {kind: 3}
        with t2ictl.controlled(pipe, [paper(**ALWAYS, **counts, step=small, semantic_step=small)]) as session:
            run(pipe, PROMPT, steps=1)
        values = [float(each.terms[f"token_merging.{kind}"]) for each in session.trace]
        assert values[0] > values[1] > values[2]


def test_a_loss_that_is_not_finite_raises_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, real = sd(), token_merging.entropy_loss
    monkeypatch.setattr(token_merging, "entropy_loss", lambda *a, **k: real(*a, **k) * float("nan"))
    control = paper(**ALWAYS, entropy_steps=1, binding_steps=0)
    with pytest.raises(NonFiniteLoss, match="evaluation 0"):
        with t2ictl.controlled(pipe, [control], on_nonfinite="raise"):
            run(pipe, PROMPT, steps=1)
    with pytest.warns(RuntimeWarning, match="updates were skipped"):
        with t2ictl.controlled(pipe, [control]):
            made = run(pipe, PROMPT, steps=1)
    with t2ictl.controlled(pipe, [paper(entropy_steps=0, binding_steps=0)]):
        assert torch.equal(made, run(pipe, PROMPT, steps=1))


# -- extra passes through the denoiser ------------------------------------------------------------------------------


def phrase(pipe: Any, text: str) -> Tensor:
    ids = pipe.tokenizer(text, padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.no_grad():
        return pipe.text_encoder(ids)[0]


@pytest.mark.parametrize("name", ["euler", "ddim", "dpmpp_2m"])
@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_the_semantic_target_is_the_noise_of_the_images_own_latents_under_the_phrase(
    name: str, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official code followed latents of its own, away from the phrase, and scaled them again at every step."""
    pipe = sd(dtype=torch.float64)
    pipe.scheduler = scheduler(name, pipe)
    targets, real = [], token_merging.semantic_binding_loss

    def spy(predicted: Tensor, target: Tensor, *rest: Any) -> Tensor:
        targets.append(target)
        return real(predicted, target, *rest)

    monkeypatch.setattr(token_merging, "semantic_binding_loss", spy)
    control = paper(**ALWAYS, binding_steps=1, entropy_steps=0)
    latents: list[Tensor] = [torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)]
    keep = {"callback_on_step_end": collector(latents)}
    with t2ictl.controlled(pipe, [control]):
        run(pipe, PROMPT, steps=3, latents=latents[0], guidance_scale=guidance, **keep)
    assert len(targets) == 3
    pipe.scheduler.set_timesteps(3)
    latents[0] = latents[0] * pipe.scheduler.init_noise_sigma
    texts = torch.cat([phrase(pipe, "a red circle"), phrase(pipe, "a blue square")])
    for index, t in enumerate(pipe.scheduler.timesteps):
        x = pipe.scheduler.scale_model_input(latents[index], t)
        with torch.no_grad():
            expected = pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=texts).sample
        torch.testing.assert_close(targets[index], expected, rtol=0, atol=1e-9)
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


def test_passes_of_noise_touch_nothing_of_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, real, count = sd(), ExtraPasses.noise, []
    pipe.scheduler = scheduler("dpmpp_2m", pipe)

    def state() -> dict[str, Any]:
        return {key: list(value) if isinstance(value, list) else value for key, value in vars(pipe.scheduler).items()}

    def noise(self: Any, *args: Any) -> Tensor:
        before = state()
        result = real(self, *args)
        after = state()
        assert before.keys() == after.keys()
        assert all(after[key] is before[key] or after[key] == before[key] for key in before)
        count.append(len(result))
        return result

    monkeypatch.setattr(ExtraPasses, "noise", noise)
    with t2ictl.controlled(pipe, [paper(**ALWAYS, entropy_steps=0, binding_steps=2)]) as session:
        run(pipe, PROMPT, steps=2)
    assert count == [2] * 6  # for each step a target and two predictions, of two groups
    assert session.cost.extra_forwards == 12 and session.cost.backwards == 8


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


# -- one key alone ----------------------------------------------------------------------------------------------------

LAYERS: dict[str, dict[str, Any]] = {
    "sd": {},
    "sdxl": {"out_bias": False, "heads": 4, "dim_head": 3},
    "upcast": {"upcast_attention": True, "upcast_softmax": True},
    "residual": {"residual_connection": True},
    "rescale": {"rescale_output_factor": 2.5},
    "residual, rescale, group norm": {
        "residual_connection": True,
        "rescale_output_factor": 2.0,
        "norm_num_groups": 3,
    },
    "norm_cross": {"cross_attention_norm": "layer_norm"},
    "biases, norm of queries and keys": {"bias": True, "qk_norm": "layer_norm"},
}


@pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0])
@pytest.mark.parametrize("name", LAYERS)
def test_one_key_alone_equals_the_whole_arithmetic(name: str, processor: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings: dict[str, Any] = {"query_dim": 12, "cross_attention_dim": 7, "heads": 2, "dim_head": 6}
        layer = Attention(**settings | LAYERS[name], processor=processor()).double().eval()
        hidden_BQC, context_BKC = torch.randn(3, 20, 12).double(), torch.randn(3, 1, 7).double()
        weight_BQC = torch.randn(3, 20, 12).double()
    found = []
    for run_layer in (
        lambda hidden, context: layer(hidden, encoder_hidden_states=context),
        lambda hidden, context: lone_key_attention(Inputs(layer, hidden, context, None, {})),
    ):
        leaf_BKC = context_BKC.clone().requires_grad_(True)
        out_BQC = run_layer(hidden_BQC, leaf_BKC)
        (gradient_BKC,) = torch.autograd.grad((out_BQC * weight_BQC).sum(), leaf_BKC)
        found.append((out_BQC.detach(), gradient_BKC))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)
    assert found[0][1].norm() > 0.01


@pytest.mark.parametrize("build", [sd, sdxl])
def test_a_pass_under_one_row_is_that_of_the_denoiser_itself(build: Any) -> None:
    pipe = build(dtype=torch.float64)
    with watched(pipe) as seen, t2ictl.controlled(pipe, [paper(**ALWAYS, entropy_steps=0, binding_steps=1)]):
        run(pipe, PROMPT, steps=1)
    (lone,) = [each for each in seen if each.states.shape[1] == 1]
    with torch.no_grad():
        plain = pipe.unet(lone.sample, lone.timestep, lone.states, **lone.keywords | {"return_dict": False})[0]
    torch.testing.assert_close(lone.result, plain, rtol=0, atol=1e-10)
