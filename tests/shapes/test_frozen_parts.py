"""Parts of the training on frozen encoders: attention, initial weights, times, layout."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import JointAttnProcessor2_0

from t2ictl.benchmarks.shapes.train.frozen.attention import ExplicitJointAttention
from t2ictl.benchmarks.shapes.train.frozen.batches import Batch
from t2ictl.benchmarks.shapes.train.frozen.dit import FlowTask, flow_times
from t2ictl.benchmarks.shapes.train.frozen.encoders import Encoders, Text, last_key_bias, load_encoders
from t2ictl.benchmarks.shapes.train.frozen.layout import CLASSES, layout_loss, layout_of
from t2ictl.benchmarks.shapes.train.frozen.settings import FrozenRecipe
from t2ictl.shapes.world import COLORS, SHAPES, Look, Mark, Placed, Scene
from tests.shapes.scenes import scene_of
from tests.stand_ins import write_encoders

RECIPE = FrozenRecipe(model="dit", layers=2, heads=2, head_width=16, layout_block=1, layout_weight=0.5)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Encoders:
    return load_encoders(write_encoders(Path(tmp_path_factory.mktemp("encoders"))), 3)


def _model() -> SD3Transformer2DModel:
    """A transformer whose weights are all at random, so that text matters."""
    torch.manual_seed(1)
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=24,
        pos_embed_max_size=24,
        qk_norm="rms_norm",
    )


def _inputs(rows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "hidden_states": torch.randn(2, 4, 16, 16, generator=generator),
        "pooled_projections": torch.randn(2, 24, generator=generator),
        "timestep": torch.tensor([100.0, 900.0]),
        "encoder_hidden_states": torch.randn(2, rows, 32, generator=generator),
    }


@torch.no_grad()
def test_explicit_attention_is_the_stock_one() -> None:
    model, inputs = _model(), _inputs(6)
    model.set_attn_processor(JointAttnProcessor2_0())
    expected = model(**inputs).sample
    model.set_attn_processor(ExplicitJointAttention())
    assert torch.allclose(model(**inputs).sample, expected, atol=1e-5)


@torch.no_grad()
def test_a_bias_on_the_last_row_is_that_row_many_times() -> None:
    model, inputs = _model(), _inputs(6)
    model.set_attn_processor(ExplicitJointAttention())
    rows = inputs.pop("encoder_hidden_states")
    plain = model(**inputs, encoder_hidden_states=rows).sample
    longer = torch.cat([rows, rows[:, -1:].expand(-1, 232, -1)], dim=1)
    repeated = model(**inputs, encoder_hidden_states=longer).sample
    bias = last_key_bias(torch.tensor([math.log(233), 0]), 64 + 6)
    biased = model(**inputs, encoder_hidden_states=rows, joint_attention_kwargs={"attention_mask": bias}).sample
    assert torch.allclose(biased[0], repeated[0], atol=1e-5)
    assert torch.allclose(biased[1], plain[1], atol=1e-5)
    assert (repeated - plain).abs().max() > 1e-3


@torch.no_grad()
def test_long_text_is_nearly_what_the_encoder_makes_of_longer_rows(encoders: Encoders) -> None:
    captions = ["a red circle", "", "a small striped blue triangle, a dotted cyan ring and a large green cross"]
    short, long = encoders.encode(captions), encoders.encode(captions, torch.tensor([True] * 3))
    tokens = encoders.tokenizers[2](captions, padding="max_length", max_length=256, return_tensors="pt").input_ids
    whole = encoders.models[2](tokens)[0]
    errors = [(text.rows_BTW[:, 24:] - whole[:, :24]).norm() / whole[:, :24].norm() for text in (short, long)]
    assert errors[1] < 0.05
    assert errors[1] < 0.2 * errors[0]
    assert torch.equal(long.rows_BTW[:, :24], short.rows_BTW[:, :24])
    assert torch.equal(long.pooled_BP, short.pooled_BP)


def test_task_repeats_padding_of_long_rows_only(encoders: Encoders, monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch, _ = _task_and_batch(encoders)
    is_long = torch.tensor([False, True, True])
    text = encoders.encode(["a red circle", "a red circle", " ".join(["star"] * 23)], is_long)
    assert torch.equal(text.bias_B, torch.tensor([0, math.log(233), 0]))
    seen: list[torch.Tensor] = []

    def errors(*inputs: Any) -> torch.Tensor:
        seen.append(inputs[-1])
        return torch.zeros(3)

    monkeypatch.setattr(task, "errors", errors)
    monkeypatch.setattr(task, "recipe", replace(RECIPE, layout_weight=0))
    task.loss(batch, text)
    expected = torch.zeros(3, 1, 1, 64 + 48)
    expected[1, ..., -1] = math.log(233)
    assert torch.equal(seen[0], expected)


def _task_and_batch(encoders: Encoders) -> tuple[FlowTask, Batch, Text]:
    """Three scenes and their captions."""
    scenes = [scene_of("a red circle"), scene_of("a blue star", "a green ring"), Scene(objects=())]
    text = encoders.encode(["a red circle", "a blue star and a green ring", ""])
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(3, 4, 16, 16, generator=generator) for _ in range(2))
    batch = Batch(
        indices=torch.arange(3),
        latents=latents,
        noise=noise,
        points=torch.tensor([0.2, 0.5, 0.9]).double(),
        is_long=torch.zeros(3, dtype=torch.bool),
        captions=("", "", ""),
    )
    return FlowTask(RECIPE, encoders, layout_of(scenes)), batch, text


def test_prediction_starts_at_zero_and_blocks_at_identity(encoders: Encoders) -> None:
    task, batch, text = _task_and_batch(encoders)
    loss, measured = task.loss(batch, text)
    expected = (batch.noise - batch.latents).square().mean()
    assert measured["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert float(loss.detach()) == pytest.approx(measured["loss"] + 0.5 * measured["layout"], rel=1e-5)
    norms = ("norm1", "norm1_context")
    zero = {name for name, weight in task.model.named_parameters() if name.endswith("weight") and not weight.any()}
    modulations = {f"transformer_blocks.{block}.{norm}.linear.weight" for block in (0, 1) for norm in norms}
    assert zero == {*modulations, "norm_out.linear.weight", "proj_out.weight"}
    linear = task.model.transformer_blocks[0].ff.net[2]
    bound = math.sqrt(6 / (linear.in_features + linear.out_features))
    assert bound > linear.weight.abs().max() > 0.9 * bound


def test_layout_head_teaches_the_transformer(encoders: Encoders) -> None:
    task, batch, text = _task_and_batch(encoders)
    task.loss(batch, text)[0].backward()
    assert task.model.pos_embed.proj.weight.grad.abs().max() > 0
    without = FlowTask(replace(RECIPE, layout_weight=0), encoders)
    assert list(without.models) == ["transformer"]
    assert without.loss(batch, text)[1].keys() == {"loss"}


def test_times_are_logit_normal() -> None:
    points = (torch.arange(10_000) + 0.5).double() / 10_000
    logits = torch.logit(flow_times(points).double())
    assert logits.mean().abs() < 1e-3
    assert logits.std() == pytest.approx(1, abs=0.01)
    assert (flow_times(points).diff() >= 0).all()


def test_layout_of_a_scene_made_by_hand() -> None:
    square = Placed(look=Look(shape="square", color="red"), x=16.0, y=24.0, radius=9.0)
    dotted = Look(shape="circle", color="blue", mark=Mark(kind="dot", color="red"))
    circle = Placed(look=dotted, x=52.0, y=44.0, radius=7.0)
    layout = layout_of([Scene(objects=(square, circle)), Scene(objects=())])
    shape, color = layout.shape_NP.view(2, 8, 8), layout.color_NP.view(2, 8, 8)
    offset = layout.offset_NPC.view(2, 8, 8, 2).float()
    # The square reaches 7.7 pixels from (16, 24): the four patches around that corner, and no other.
    assert (shape[0, 2:4, 1:3] == 1 + SHAPES.index("square")).all()
    assert (color[0, 2:4, 1:3] == 1 + COLORS.index("red")).all()
    # The circle covers the patch of rows 40 to 47 and columns 48 to 55, and parts of its neighbors.
    assert shape[0, 5, 6] == 1 + SHAPES.index("circle")
    assert color[0, 5, 6] == 1 + COLORS.index("blue")
    assert {int(value) for value in shape[0].unique()} == {0, 1 + SHAPES.index("square"), 1 + SHAPES.index("circle")}
    assert int((shape[0] == 1 + SHAPES.index("square")).sum()) == 4
    assert offset[0, 2, 1].tolist() == pytest.approx([4 / 9, 4 / 9], abs=1e-3)
    assert offset[0, 3, 2].tolist() == pytest.approx([-4 / 9, -4 / 9], abs=1e-3)
    assert offset[0, 5, 6].tolist() == pytest.approx([0, 0], abs=1e-3)
    assert not shape[1].any() and not color[1].any() and not offset[1].any()
    assert not offset[0][shape[0] == 0].any()


def test_right_layout_costs_nothing_and_pure_noise_is_not_asked() -> None:
    layout = layout_of([scene_of("a red circle", "a blue star")])
    right = torch.full((1, 64, 2 * CLASSES + 2), -30.0)
    right.scatter_(2, layout.shape_NP.long()[..., None], 30.0)
    right.scatter_(2, CLASSES + layout.color_NP.long()[..., None], 30.0)
    right[..., 2 * CLASSES :] = layout.offset_NPC.float()
    assert float(layout_loss(right, layout, torch.ones(1))) < 1e-6
    guess = torch.zeros_like(right)
    covered = layout.shape_NP[0] > 0
    missed = layout.offset_NPC[0][covered].float().square().sum(-1).mean()
    expected = 2 * math.log(CLASSES) + float(missed)
    assert float(layout_loss(guess, layout, torch.ones(1))) == pytest.approx(expected, rel=1e-4)
    assert float(layout_loss(guess, layout, torch.zeros(1))) == 0
