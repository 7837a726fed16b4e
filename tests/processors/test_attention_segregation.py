"""A-STAR against a slow reference that shares no code with the library.

The reference is one loop over images, steps and equations: its own explicit attention, its own preparation of maps,
its own losses and regions, its own sampling loop around the U-Net and the scheduler.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import t2ictl
from t2ictl.controls.layouts import Region
from t2ictl.errors import BadSetting, NoLayerMatched, SpanNotFound
from t2ictl.guidance.rules import Refinement, StepSize
from t2ictl.processors import AttendAndExcite, AttentionSegregation
from t2ictl.settings.windows import Window
from tests.tiny import run, scheduler, sd, sd2, sdxl

PROMPT = "a red circle and a blue square"
STEPS = 5


@dataclass(kw_only=True)
class Reference:
    """What the loop is told: for each image its prompt and the tokens of its concepts."""

    prompts: list[str]
    concepts: list[list[list[int]]]
    layers: list[int]  # numbers of image positions of the layers whose maps are meant
    guidance: float = 7.5
    first_pad: bool = True  # all but the last position compete; else the tokens before the end token
    from_update: bool = False
    presence: float = 0.0
    regions: dict[tuple[int, int], Tensor] | None = None  # given by the user: (image, concept) to cells
    stop: int = 10**9


class Explicit:
    """Attention written out; keeps its probabilities of the last call."""

    probabilities: Tensor

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        width, heads = q.shape[-1] // attn.heads, []
        for head in range(attn.heads):
            part = slice(head * width, (head + 1) * width)
            heads.append(torch.softmax(q[..., part] @ k[..., part].mT / math.sqrt(width), dim=-1))
        self.probabilities = torch.stack(heads, 1)
        mixed = [one @ v[..., h * width : (h + 1) * width] for h, one in enumerate(heads)]
        return attn.to_out[0](torch.cat(mixed, -1))


def published_kernel() -> Tensor:
    weights = torch.ones(3, 3)
    for axis in torch.meshgrid([torch.arange(3.0)] * 2, indexing="ij"):
        weights = weights * (1 / (0.5 * math.sqrt(2 * math.pi)) * torch.exp(-(((axis - 1) / (2 * 0.5)) ** 2)))
    return (weights / weights.sum()).double()


def mean_map(spies: list[Explicit], layers: list[int], row: int, shape: tuple[int, int]) -> Tensor:
    """Mean over all heads of the layers of the given sizes, brought to the largest: (Y, X, T)."""
    found, largest = [], max(layers)
    scale = math.isqrt(shape[0] * shape[1] // largest)
    size = (-(-shape[0] // scale), -(-shape[1] // scale))
    for spy in spies:
        _, heads, places, _ = spy.probabilities.shape
        if places in layers:
            down = math.isqrt(size[0] * size[1] // places) or 1
            own = (-(-size[0] // down), -(-size[1] // down))
            for head in range(heads):
                one = spy.probabilities[row, head].T.reshape(1, -1, *own)
                found.append(F.interpolate(one, size=size, mode="bilinear")[0].permute(1, 2, 0))
    return torch.stack(found).mean(0)


def prepare(map_YXT: Tensor, concepts: list[list[int]], last: int) -> list[Tensor]:
    """Competition of the words, mean over the tokens of a concept, smoothing."""
    shares = torch.softmax(100 * map_YXT[:, :, 1:last], dim=-1)
    prepared = []
    for tokens in concepts:
        one = torch.stack([shares[:, :, token - 1] for token in tokens]).mean(0)
        padded = F.pad(one[None, None], (1, 1, 1, 1), mode="reflect")
        prepared.append(F.conv2d(padded, published_kernel()[None, None])[0, 0])
    return prepared


def otsu(map_YX: Tensor) -> Tensor:
    """Above the threshold with the largest variance between the classes, by trying every value."""
    values, best, threshold = sorted(map_YX.flatten().tolist()), -1.0, 0.0
    for count in range(1, len(values)):
        if values[count - 1] == values[count]:
            continue
        low, high = values[:count], values[count:]
        between = len(low) * len(high) * (sum(high) / len(high) - sum(low) / len(low)) ** 2
        if between > best * (1 + 1e-12):
            best, threshold = between, values[count - 1]
    return (map_YX > threshold).double()


def overlap(a: Tensor, b: Tensor) -> Tensor:
    return torch.minimum(a, b).sum() / (a + b).sum()


def loss_of(maps: list[Tensor], places: list[Tensor | None], presence: float) -> Tensor:
    """Equations 2 and 3 of the paper, and Attend-and-Excite's as an extra."""
    total = 0 * torch.stack(maps).sum()  # so that one concept without a region still has a gradient: zero
    for m in range(len(maps)):
        for n in range(m):
            total = total + overlap(maps[m], maps[n])
    for one, place in zip(maps, places, strict=True):
        if place is not None:
            total = total + 1 - overlap(one, place)
    if presence:
        total = total + presence * torch.stack([1 - one.max() for one in maps]).max()
    return total


def encode(pipe: Any, text: str) -> tuple[Tensor, int]:
    row = pipe.tokenizer(text, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
    ends = [i for i, token in enumerate(row[0].tolist()) if token == pipe.tokenizer.eos_token_id]
    return pipe.text_encoder(row)[0], ends[0]


def one_image(pipe: Any, plan: Reference, spies: list[Explicit], image: int, z: Tensor) -> Tensor:
    """Sample one image: at each step a full pass for the gradient, then the guided pass."""
    states, end = encode(pipe, plan.prompts[image])
    empty, _ = encode(pipe, "")
    last = states.shape[1] - 1 if plan.first_pad else end
    concepts, shape = plan.concepts[image], (z.shape[-2], z.shape[-1])
    learned: list[Tensor | None] = [None] * len(concepts)
    pipe.scheduler.set_timesteps(STEPS)
    z = z * pipe.scheduler.init_noise_sigma
    for index, t in enumerate(pipe.scheduler.timesteps):
        x = pipe.scheduler.scale_model_input(z, t).detach()
        scale = float((pipe.scheduler.scale_model_input(torch.ones_like(z), t)).flatten()[0])
        given = {n: cells for (p, n), cells in (plan.regions or {}).items() if p == image}
        before = None
        if concepts and index < plan.stop:
            leaf = x.clone().requires_grad_(True)
            with torch.enable_grad():
                pipe.unet(leaf, t, encoder_hidden_states=states)
                maps = prepare(mean_map(spies, plan.layers, 0, shape), concepts, last)
                total = loss_of(maps, [given.get(n, learned[n]) for n in range(len(maps))], plan.presence)
            (gradient,) = torch.autograd.grad(total, leaf)
            alpha = 20 * math.sqrt(1 - 0.5 * index / (STEPS - 1))
            x, z = x - alpha * gradient, z - alpha * gradient / scale
            before = [otsu(each.detach()) for each in maps]
        rows = torch.cat([empty, states]) if plan.guidance > 1 else states
        noise = pipe.unet(torch.cat([x] * len(rows)), t, encoder_hidden_states=rows).sample
        after = [otsu(each) for each in prepare(mean_map(spies, plan.layers, -1, shape), concepts, last)]
        if concepts and index < plan.stop:
            learned = list((before or []) if plan.from_update else after)
        if plan.guidance > 1:
            noise = noise[:1] + plan.guidance * (noise[1:] - noise[:1])
        z = pipe.scheduler.step(noise, t, z).prev_sample
    return z


@torch.no_grad()
def reference(pipe: Any, plan: Reference, latents: Tensor) -> Tensor:
    before = dict(pipe.unet.attn_processors)
    spies = {name: Explicit() for name in before}
    pipe.unet.set_attn_processor(dict(spies))
    crosses = [spy for name, spy in spies.items() if "attn2" in name]
    made = [one_image(pipe, plan, crosses, p, latents[p : p + 1]) for p in range(len(latents))]
    pipe.unet.set_attn_processor(before)
    return torch.cat(made)


def noise(rows: int, height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(rows, 4, height, width, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def ours(pipe: Any, prompt: Any, control: AttentionSegregation, latents: Tensor, **call: Any) -> Tensor:
    with t2ictl.controlled(pipe, [control]):
        size = {"height": latents.shape[-2] * 4, "width": latents.shape[-1] * 4}
        return run(pipe, prompt, steps=STEPS, latents=latents, **size, **call)


def tokens(pipe: Any, prompt: str, *words: str) -> list[list[int]]:
    """Positions by counting pieces: the prompts here are made of words whose pieces are known."""
    pieces = ["", *pipe.tokenizer.tokenize(prompt)]
    spelled = {"skateboard": ["skate", "board</w>"]}
    return [[pieces.index(piece) for piece in spelled.get(word, [f"{word}</w>"])] for word in words]


def compare(
    pipe: Any, plan: Reference, control: AttentionSegregation, prompt: Any, latents: Tensor, **call: Any
) -> None:
    expected, found = reference(pipe, plan, latents), ours(pipe, prompt, control, latents, **call)
    plain = run(
        pipe, prompt, steps=STEPS, latents=latents, height=latents.shape[-2] * 4, width=latents.shape[-1] * 4, **call
    )
    assert (expected - plain).abs().max() > 0.1  # the control does something
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as in the paper": ({}, {}),
    "regions of the update": ({"from_update": True}, {"regions_from": "update"}),
    "with presence": ({"presence": 0.7}, {"presence": 0.7}),
    "first three steps": ({"stop": 3}, {"window": Window.from_steps(0, 3, STEPS)}),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_slow_reference(name: str) -> None:
    pipe, (plan, settings) = sd(dtype=torch.float64), CASES[name]
    concepts = [tokens(pipe, PROMPT, "circle", "square")]
    wanted = Reference(prompts=[PROMPT], concepts=concepts, layers=[256], **plan)
    compare(pipe, wanted, AttentionSegregation(**settings), PROMPT, noise(1))


def test_layers_of_several_sizes_without_guidance() -> None:
    pipe = sd(dtype=torch.float64)
    concepts = [tokens(pipe, PROMPT, "circle", "square")]
    wanted = Reference(prompts=[PROMPT], concepts=concepts, layers=[256, 64], guidance=1.0)
    control = AttentionSegregation(layers=("cross@1", "cross@2"))
    compare(pipe, wanted, control, PROMPT, noise(1), guidance_scale=1.0)


def test_an_image_that_is_not_square() -> None:
    pipe = sd(dtype=torch.float64)
    concepts = [tokens(pipe, PROMPT, "circle", "square")]
    wanted = Reference(prompts=[PROMPT], concepts=concepts, layers=[14 * 18])
    compare(pipe, wanted, AttentionSegregation(), PROMPT, noise(1, 14, 18))


def test_sd2_competes_up_to_the_end_token() -> None:
    pipe = sd2(dtype=torch.float64, upcast_attention=False)
    concepts = [tokens(pipe, PROMPT, "circle", "square")]
    wanted = Reference(prompts=[PROMPT], concepts=concepts, layers=[256], first_pad=False)
    compare(pipe, wanted, AttentionSegregation(), PROMPT, noise(1))


def test_boxes_and_masks_take_the_place_of_regions() -> None:
    pipe = sd(dtype=torch.float64)
    box, mask = torch.zeros(16, 16).double(), torch.zeros(16, 16).double()
    box[8:, :5] = 1  # cell centers below 0.3 of the width: 4.8 cells hold five centers (0.5 ... 4.5)
    mask[2:9, 9:14] = 1
    concepts = [tokens(pipe, "a cat a dog a car", "cat", "dog", "car")]
    wanted = Reference(
        prompts=["a cat a dog a car"], concepts=concepts, layers=[256], regions={(0, 0): box, (0, 2): mask}
    )
    layout = (Region(word="cat", box=(0.0, 0.5, 0.3, 1.0)), Region(word="car", mask=mask.tolist()))
    control = AttentionSegregation(concepts=("cat", "dog", "car"), layout=layout)
    compare(pipe, wanted, control, "a cat a dog a car", noise(1))


def test_a_batch_of_unlike_prompts_and_two_images_each() -> None:
    """Three concepts, one of two tokens; one concept; none."""
    pipe = sd(dtype=torch.float64)
    prompts = ["a cat on a skateboard with a hat", "a red circle", "a photo of a dog"]
    words = (("cat", "skateboard", "hat"), ("circle",), ("photo",))
    concepts = [tokens(pipe, prompt, *own) for prompt, own in zip(prompts, words, strict=True)]
    wanted = Reference(
        prompts=[each for each in prompts for _ in range(2)],
        concepts=[each for each in concepts for _ in range(2)],
        layers=[256],
    )
    assert concepts[0][1] == [5, 6]
    compare(pipe, wanted, AttentionSegregation(concepts=words), prompts, noise(6), num_images_per_prompt=2)


def test_a_prompt_without_objects_is_left_alone_beside_one_that_has_some() -> None:
    pipe = sd(dtype=torch.float64)
    prompts = [PROMPT, "in white"]
    with pytest.warns(UserWarning, match="'in white'"):
        together = ours(pipe, prompts, AttentionSegregation(), noise(2))
    plain = run(pipe, prompts, steps=STEPS, latents=noise(2))
    torch.testing.assert_close(together[1], plain[1], rtol=0, atol=1e-10)
    assert (together[0] - plain[0]).abs().max() > 0.1


def first_moves(pipe: Any, name: str, latents: Tensor, **settings: Any) -> Any:
    pipe.scheduler = scheduler(name, timestep_spacing="leading", steps_offset=1)
    with t2ictl.controlled(pipe, [AttentionSegregation(window=Window.from_steps(0, 1, STEPS), **settings)]) as session:
        run(pipe, PROMPT, steps=STEPS, latents=latents)
    return session.trace[0]


def test_euler_moves_as_ddim_does_in_the_scaled_space() -> None:
    """The same denoiser input and timestep give the same move there, whatever the scheduler calls its sample."""
    pipe = sd(dtype=torch.float64)
    pipe.scheduler = scheduler("euler", timestep_spacing="leading", steps_offset=1)
    pipe.scheduler.set_timesteps(STEPS)
    t = pipe.scheduler.timesteps[0]
    unit = float(pipe.scheduler.scale_model_input(torch.ones((), dtype=torch.float64), t))
    assert unit < 0.2  # what an unscaled move would be off by, squared
    x, scaled = noise(1), noise(1) / unit / float(pipe.scheduler.init_noise_sigma)
    ddim = first_moves(pipe, "ddim", x)
    euler = first_moves(pipe, "euler", scaled)
    assert float(euler.step.timestep) == float(ddim.step.timestep)
    torch.testing.assert_close(euler.length, ddim.length, rtol=1e-5, atol=0)
    torch.testing.assert_close(euler.total, ddim.total, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["euler", "ddim"])
def test_whole_runs_of_both_kinds_of_scheduler_equal_the_reference(name: str) -> None:
    pipe = sd(dtype=torch.float64)
    pipe.scheduler = scheduler(name)
    concepts = [tokens(pipe, PROMPT, "circle", "square")]
    wanted = Reference(prompts=[PROMPT], concepts=concepts, layers=[256])
    compare(pipe, wanted, AttentionSegregation(), PROMPT, noise(1))


@pytest.mark.parametrize("settings", [{"segregation": 1.0, "retention": 0.0}, {}])
@pytest.mark.parametrize("mode", ["raw", "normalized"])
def test_one_concept_has_no_pair_and_stays_finite(settings: dict[str, Any], mode: Any) -> None:
    pipe, step = sd(), StepSize(mode=mode, scale=20.0 if mode == "raw" else 0.02)
    with t2ictl.controlled(pipe, [AttentionSegregation(concepts=("circle",), step=step, **settings)]) as session:
        made = run(pipe, "a red circle", steps=3)
    assert torch.isfinite(made).all()
    assert [float(entry.length[0]) > 0 for entry in session.trace] == [False] + [settings == {}] * 2


def test_two_controls_mix_their_losses() -> None:
    pipe = sd(dtype=torch.float64)
    latents = noise(1)
    both = AttentionSegregation(presence=0.7)
    with t2ictl.controlled(
        pipe, [AttentionSegregation(), AttendAndExcite(strength=0.7, window=Window(), refinement=None)]
    ):
        mixed = run(pipe, PROMPT, steps=STEPS, latents=latents)
    torch.testing.assert_close(mixed, ours(pipe, PROMPT, both, latents), rtol=0, atol=1e-8)


def test_a_second_prompt_does_not_see_the_regions_of_the_first() -> None:
    pipe = sd()
    with t2ictl.controlled(pipe, [AttentionSegregation()]):
        run(pipe, "a cat and a dog", steps=3)
        second = run(pipe, PROMPT, steps=3)
    with t2ictl.controlled(pipe, [AttentionSegregation()]):
        assert torch.equal(second, run(pipe, PROMPT, steps=3))


@pytest.mark.parametrize("regions_from", ["guided", "update"])
def test_refining_at_one_step_still_keeps_the_regions_of_the_step_before(regions_from: Any) -> None:
    pipe, refinement = sd(), Refinement(thresholds=((0.0, 1.0),), max_iterations=2)
    control = AttentionSegregation(regions_from=regions_from, refinement=refinement)
    with t2ictl.controlled(pipe, [control]) as session:
        run(pipe, PROMPT, steps=2)
    retention = [float(entry.terms["attention_segregation.retention"]) for entry in session.trace]
    assert [value > 0 for value in retention] == [False, False, False, True]


@pytest.mark.parametrize("build", [sd, sdxl])
@pytest.mark.parametrize("region", ["otsu", "half_max", "top20"])
@pytest.mark.parametrize("smoothing", ["gaussian", "none"])
def test_every_choice_runs(build: Any, region: Any, smoothing: Any) -> None:
    pipe = build()
    with t2ictl.controlled(pipe, [AttentionSegregation(region=region, smoothing=smoothing)]) as session:
        assert torch.isfinite(run(pipe, PROMPT, steps=2)).all()
    assert 0.5 <= float(session.trace[1].terms["attention_segregation.retention"]) / 2 <= 1
    assert 0 < float(session.trace[0].terms["attention_segregation.segregation"]) <= 0.5


def test_named_errors() -> None:
    pipe = sd()
    with pytest.raises(BadSetting, match="layout acts through retention"):
        AttentionSegregation(retention=0, layout=(Region(word="circle", box=(0, 0, 1, 1)),))
    cases: list[tuple[AttentionSegregation, Any, str]] = [
        (AttentionSegregation(concepts=("dog",)), SpanNotFound, "dog"),
        (AttentionSegregation(concepts=(("circle",), ("square",))), BadSetting, "2 lists for 1 prompts"),
        (AttentionSegregation(layers=("self",)), NoLayerMatched, "self"),
        (AttentionSegregation(layout=(Region(word="red", box=(0, 0, 1, 1)),)), BadSetting, "none of the concepts"),
        (AttentionSegregation(layout=(Region(word="dog", box=(0, 0, 1, 1)),)), SpanNotFound, "dog"),
    ]
    for control, error, message in cases:
        with t2ictl.controlled(pipe, [control]), pytest.raises(error, match=message):
            run(pipe, PROMPT, steps=2)
