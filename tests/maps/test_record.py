"""The record equals a plain mean of explicit softmax maps, costs what it says, and never touches the image."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import t2ictl
from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.edits import AttentionCall
from t2ictl.attention.layers import Layer, select_layers
from t2ictl.errors import AmbiguousWord, BudgetExceeded, NoLayerMatched, NotRecorded, SpanNotFound
from t2ictl.maps.record import AttentionRecord
from t2ictl.maps.recorder import MapTap, Recorder, Recording
from t2ictl.ports.unet import unet_layers
from t2ictl.settings.windows import Step
from tests.tiny import run, sd, sd2, sdxl

PROMPT = "a red circle and a blue skateboard"
STEPS = 3


class Explicit:
    """A plain attention processor that keeps the probabilities of the layer it stands at, one tensor a call."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        rows, heads = len(hidden_states), attn.heads
        q, k, v = (
            part.reshape(rows, -1, heads, part.shape[-1] // heads).permute(0, 2, 1, 3)
            for part in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        weights = torch.softmax(torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5, dim=-1)
        self.kept.append(weights.detach())
        out = torch.einsum("bhqk,bhkd->bqhd", weights, v).reshape(rows, -1, heads * v.shape[-1])
        return attn.to_out[0](out)


def explicit_maps(pipe: Any, prompt: Any, **call: Any) -> dict[str, list[Tensor]]:
    """Probabilities of every cross-attention layer by module name, one ``(rows, heads, positions, tokens)`` a step."""
    before = dict(pipe.unet.attn_processors)
    spies = {name: Explicit() if "attn2" in name else each for name, each in before.items()}
    pipe.unet.set_attn_processor(dict(spies))
    run(pipe, prompt, steps=STEPS, **call)
    pipe.unet.set_attn_processor(before)
    return {name.removesuffix(".processor"): spy.kept for name, spy in spies.items() if isinstance(spy, Explicit)}


def recorded(pipe: Any, prompt: Any, record: bool | Recording = True, **call: Any) -> AttentionRecord:
    with t2ictl.controlled(pipe, record=record) as session:
        run(pipe, prompt, steps=STEPS, **call)
    return session.record


def expected_map(
    maps: dict[str, list[Tensor]], names: list[str], row: int, tokens: Any, step: Any, size: Any
) -> Tensor:
    """Mean over heads of the named layers, over tokens and, with step None, over steps."""
    found = []
    for name in names:
        kept = maps[name] if step is None else [maps[name][step]]
        for each in kept:
            own = (size[0] * size[1] // each.shape[2]) ** 0.5
            for head in range(each.shape[1]):
                map_YX = each[row, head][:, list(tokens)].mean(-1).reshape(round(size[0] / own), round(size[1] / own))
                grown = F.interpolate(map_YX[None, None], size=size, mode="bilinear", align_corners=False)
                found.append(grown[0, 0])
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("build", [sd, sd2, sdxl])
@pytest.mark.parametrize("guided", [True, False])
def test_record_is_the_mean_of_explicit_maps(build: Any, guided: bool) -> None:
    # SD 2 upcasts to float32 where the reference works in double precision, and so is built without that here.
    pipe = build(dtype=torch.float64, **({"upcast_attention": False} if build is sd2 else {}))
    call = {"guidance_scale": 7.5 if guided else 1.0}
    maps, record = explicit_maps(pipe, PROMPT, **call), recorded(pipe, PROMPT, **call)
    with t2ictl.controlled(pipe) as session:
        layers = select_layers(session.adapter.layers, f"cross@{session.adapter.semantic_stride}")
    row, size = int(guided), layers[0].size((16, 16))
    prompt = t2ictl.parse(pipe, PROMPT)
    for word in ("circle", "skateboard", "a#2", "red circle"):
        tokens = prompt.find(word).tokens
        for block in (None, *record.heads):
            names = [layer.module for layer in layers if block in (None, layer.block)]
            for step in (None, 0, -1):
                expected = expected_map(maps, names, row, tokens, step, size)
                found = record.map(word, block=block, step=step)
                torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    assert len(prompt.find("skateboard").tokens) == 2 and record.steps == STEPS


def test_layers_of_unlike_size_are_brought_to_the_largest() -> None:
    pipe = sd(dtype=torch.float64)
    where = Recording(layers=("up.*.cross", "mid"))
    maps, record = explicit_maps(pipe, PROMPT), recorded(pipe, PROMPT, where)
    with t2ictl.controlled(pipe) as session:
        layers = select_layers(session.adapter.layers, where.layers)
    layers = tuple(layer for layer in layers if layer.kind == "cross")
    assert len({layer.stride for layer in layers}) > 2
    tokens = t2ictl.parse(pipe, PROMPT).find("circle").tokens
    expected = expected_map(maps, [layer.module for layer in layers], 1, tokens, 1, (16, 16))
    torch.testing.assert_close(record.map("circle", step=1).double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(56, 72), (104, 136)])
def test_sizes_that_are_not_square_nor_even(size: tuple[int, int]) -> None:
    pipe = sd()
    record = recorded(pipe, PROMPT, Recording(layers=("cross",)), height=size[0], width=size[1])
    assert record.map("circle").shape == (size[0] // 4, size[1] // 4)


def test_mean_over_steps_is_the_same_kept_or_running() -> None:
    pipe = sd()
    every, mean = recorded(pipe, PROMPT), recorded(pipe, PROMPT, Recording(per_step=False))
    for block in (None, *every.heads):
        torch.testing.assert_close(mean.map("circle", block=block), every.map("circle", block=block), rtol=0, atol=1e-6)
    by_hand = torch.stack([every.map("circle", step=step) for step in range(STEPS)]).mean(0)
    torch.testing.assert_close(every.map("circle"), by_hand, rtol=0, atol=1e-6)
    assert mean.bytes * STEPS == every.bytes
    with pytest.raises(NotRecorded, match="per_step"):
        mean.map("circle", step=1)


@pytest.mark.parametrize("per_step", [True, False])
def test_budget_is_exactly_what_is_held(per_step: bool) -> None:
    pipe = sd()
    record = recorded(pipe, [PROMPT, "a cat"], Recording(per_step=per_step), num_images_per_prompt=2)
    exact = record.bytes / 2**20
    assert record.bytes == sum(maps.numel() * 4 for maps in record.maps.values()) > 0
    recorded(pipe, [PROMPT, "a cat"], Recording(per_step=per_step, budget_mb=exact), num_images_per_prompt=2)
    with pytest.raises(BudgetExceeded, match="budget of"):
        recorded(
            pipe, [PROMPT, "a cat"], Recording(per_step=per_step, budget_mb=exact * 0.999), num_images_per_prompt=2
        )
    # Room is taken once, not again at every step.
    assert {maps.untyped_storage().nbytes() for maps in record.maps.values()} == {
        maps.numel() * 4 for maps in record.maps.values()
    }


def test_each_image_of_a_batch_has_its_own_prompt_and_maps() -> None:
    pipe = sd(dtype=torch.float64)
    prompts = ["a red circle", "a photo of a small green cat"]
    maps = explicit_maps(pipe, prompts, num_images_per_prompt=2)
    record = recorded(pipe, prompts, num_images_per_prompt=2)
    with t2ictl.controlled(pipe) as session:
        names = [
            layer.module for layer in select_layers(session.adapter.layers, f"cross@{session.adapter.semantic_stride}")
        ]
    for image, word in ((0, "circle"), (1, "circle"), (2, "cat"), (3, "cat")):
        tokens = record.prompts[image].find(word).tokens
        expected = expected_map(maps, names, 4 + image, tokens, None, (16, 16))
        torch.testing.assert_close(record.map(word, image=image).double(), expected, rtol=0, atol=1e-6)
    with pytest.raises(SpanNotFound):
        record.map("cat", image=0)
    for wrong in (4, -1):
        with pytest.raises(NotRecorded, match="counted from 0"):
            record.map("circle", image=wrong)


def test_named_words_only_and_in_a_batch_not_in_every_prompt() -> None:
    pipe = sd()
    record = recorded(pipe, ["a red circle", "a cat on a car"], Recording(words=("circle", "cat", "car")))
    assert len(record.columns) == 3
    assert record.map("circle", image=0).shape == record.map("car", image=1).shape
    with pytest.raises(NotRecorded, match="'red' was not recorded"):
        recorded(pipe, "a red circle", Recording(words=("circle",))).map("red")
    with pytest.raises(SpanNotFound, match="dog"):
        recorded(pipe, ["a red circle", "a cat"], Recording(words=("cat", "dog")))
    with pytest.raises(NotRecorded, match="block 'mid'"):
        record.map("circle", block="mid")
    with pytest.raises(NotRecorded, match="no step 3"):
        record.map("circle", step=STEPS)


@pytest.mark.parametrize("prompt", ["", "!"])
def test_a_prompt_without_words_records_nothing_and_still_runs(prompt: str) -> None:
    record = recorded(sd(), prompt)
    assert record.columns == () and record.steps == STEPS and record.bytes == 0


def test_a_word_at_two_positions_is_refused_only_when_asked_for() -> None:
    pipe = sdxl()
    record = recorded(pipe, "a red circle", prompt_2="a small red circle")
    assert record.map("a").shape == record.map("a").shape
    with pytest.raises(AmbiguousWord, match="circle"):
        record.map("circle")


@pytest.mark.parametrize("build", [sd, sd2, sdxl])
def test_recording_leaves_the_image_bit_equal(build: Any) -> None:
    pipe = build()
    plain = run(pipe, PROMPT, steps=STEPS)
    with t2ictl.controlled(pipe, record=Recording(layers=("cross",))):
        assert torch.equal(run(pipe, PROMPT, steps=STEPS), plain)


def test_maps_are_probabilities() -> None:
    """Every position shares one unit of attention among all tokens, and a record shows parts of it."""
    record = recorded(sd(), PROMPT, Recording(layers=("cross",)))
    for maps_SBTYX in record.maps.values():
        assert maps_SBTYX.min() >= 0 and maps_SBTYX.max() <= 1
        assert (maps_SBTYX.sum(2) <= 1 + 1e-5).all()
    assert record.map("circle").dtype == torch.float32 and record.map("circle").device.type == "cpu"


def _layer(factor: int, order: int, heads: int) -> Layer:
    address = f"up.{order}.0.0.cross"
    return Layer(address=address, module="m", kind="cross", block="up", stride=factor, order=order, heads=heads)


def _call(layer: Layer, size: tuple[int, int]) -> AttentionCall:
    batch = BatchLayout.from_counts(prompts=1, images_per_prompt=2, guided=False)
    step = Step(index=0, total=1, timestep=1.0)
    return AttentionCall(layer=layer, size=size, batch=batch, step=step, attention=None)  # type: ignore[arg-type]


def test_tap_mean_weighs_heads_equally_sums_to_one_and_has_gradients() -> None:
    fine, coarse = _layer(1, 0, 3), _layer(2, 1, 5)
    tap = MapTap((fine, coarse), slice(None))
    source = torch.Generator().manual_seed(0)
    raw = [torch.randn(2, heads, cells, 6, generator=source).requires_grad_() for heads, cells in ((3, 20), (5, 6))]
    weights = [each.softmax(-1) for each in raw]
    tap.take(_call(fine, (4, 5)), weights[0].sum(1))
    tap.take(_call(coarse, (2, 3)), weights[1].sum(1))
    mean_BYXT = tap.mean()
    assert mean_BYXT.shape == (2, 4, 5, 6)
    torch.testing.assert_close(mean_BYXT.sum(-1), torch.ones(2, 4, 5), rtol=0, atol=1e-6)
    grown = F.interpolate(weights[1].sum(1).transpose(1, 2).reshape(2, 6, 2, 3), size=(4, 5), mode="bilinear")
    expected = (weights[0].sum(1).reshape(2, 4, 5, 6) + grown.permute(0, 2, 3, 1)) / 8
    torch.testing.assert_close(mean_BYXT, expected, rtol=0, atol=1e-6)
    mean_BYXT[..., 2].sum().backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in raw)


def test_recorder_refuses_before_anything_is_held() -> None:
    prompt = t2ictl.parse(sd(), PROMPT)
    few = Recording(budget_mb=0.0)
    with pytest.raises(BudgetExceeded, match=r"Recording 16 maps of 8 x 8 needs"):
        Recorder([_layer(2, 0, 1)], slice(0, 1), [prompt], few, total=2, latent_size=(16, 16))


def test_self_attention_has_no_words_to_record() -> None:
    pipe = sd()
    with pytest.raises(NoLayerMatched):
        recorded(pipe, PROMPT, Recording(layers=("self",)))


@pytest.mark.parametrize("build", [sd, sd2, sdxl])
@pytest.mark.parametrize("size", [(32, 32), (48, 24)])
def test_maps_by_size_are_those_by_block_taken_apart(build: Any, size: tuple[int, int]) -> None:
    pipe, every = build(), ("down.*", "mid.*", "up.*")
    layers = {f"{layer.block}@{layer.stride}" for layer in unet_layers(pipe.unet) if layer.kind == "cross"}
    with t2ictl.controlled(pipe, record=Recording(layers=every, by="size")) as session:
        run(pipe, PROMPT, steps=STEPS, height=size[0] * 2, width=size[1] * 2)
    with t2ictl.controlled(pipe, record=Recording(layers=every)) as whole:
        run(pipe, PROMPT, steps=STEPS, height=size[0] * 2, width=size[1] * 2)
    assert set(session.record.maps) == layers and len(layers) >= 3
    for word in ("circle", "skateboard"):
        for step in (None, 0, 2):
            torch.testing.assert_close(session.record.map(word, step=step), whole.record.map(word, step=step))
    for name, maps_SBTYX in session.record.maps.items():
        with t2ictl.controlled(pipe, record=Recording(layers=(f"{name.replace('@', '.*@')}",))) as alone:
            run(pipe, PROMPT, steps=STEPS, height=size[0] * 2, width=size[1] * 2)
        assert session.record.map("circle", block=name).shape == maps_SBTYX.shape[-2:]
        torch.testing.assert_close(session.record.map("circle", block=name), alone.record.map("circle"))


def test_the_budget_of_maps_by_size_is_exactly_what_is_held() -> None:
    pipe = sd()
    with t2ictl.controlled(pipe, record=Recording(by="size", layers=("down.*", "up.*"))) as session:
        run(pipe, PROMPT, steps=STEPS)
    held = session.record.bytes / 2**20
    for budget, fits in ((held * 1.0001, True), (held * 0.999, False)):
        recording = Recording(by="size", layers=("down.*", "up.*"), budget_mb=budget)
        with nullcontext() if fits else pytest.raises(BudgetExceeded), t2ictl.controlled(pipe, record=recording):
            run(pipe, PROMPT, steps=STEPS)
