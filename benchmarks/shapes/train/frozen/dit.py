"""The transformer of Stable Diffusion 3's class: untrained weights, times, and what it learns by.

Rectified flow: ``x_s = (1 - s) x_0 + s noise``, the model predicts ``noise - x_0``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import nn

from t2ictl.benchmarks.shapes.train.frozen.attention import ExplicitJointAttention
from t2ictl.benchmarks.shapes.train.frozen.batches import Batch
from t2ictl.benchmarks.shapes.train.frozen.encoders import Encoders, Text, last_key_bias
from t2ictl.benchmarks.shapes.train.frozen.layout import Layout, LayoutHead, layout_loss
from t2ictl.benchmarks.shapes.train.frozen.settings import FrozenRecipe
from t2ictl.benchmarks.shapes.train.learner import Measured
from t2ictl.benchmarks.shapes.train.loop import stream
from t2ictl.benchmarks.shapes.train.start import carry_over

#: Linear layers of adaptive norms, by a part of their names.
MODULATIONS = ("norm1.linear", "norm1_context.linear", "norm_out.linear")


@torch.no_grad()
def initialize(model: nn.Module) -> None:
    """Initialize as in Peebles and Xie, "Scalable diffusion models with transformers", 2023, arXiv 2212.09748.

    Modulations and the last projection start at zero, so that every block is the identity and the
    prediction is zero; the other linear layers, and the patches, start with Xavier's uniform weights and no bias.

    Args:
        model: changed in place.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4)); initialize(model); bool((model[0].bias == 0).all())
        True
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight.view(len(layer.weight), -1))
            if layer.bias is not None:
                layer.bias.zero_()
            if name.endswith((*MODULATIONS, "proj_out")):
                layer.weight.zero_()


def build_transformer(recipe: FrozenRecipe, encoders: Encoders) -> SD3Transformer2DModel:
    """Make the transformer for latents of 4 channels and 16x16 cells, untrained or with weights to start from.

    Args:
        recipe: layers, heads, their width, seed and start.
        encoders: two CLIP and a T5 encoder, whose widths it takes.

    Returns:
        The stock class.

    Raises:
        BadSetting: the model to start from has other sizes.
    """
    clips, t5 = encoders.models[:2], encoders.models[2]
    width = recipe.heads * recipe.head_width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(recipe.seed, "weights", 3).integers(2**31)))
        model = SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            attention_head_dim=recipe.head_width,
            joint_attention_dim=t5.config.d_model,
            caption_projection_dim=width,
            pooled_projection_dim=sum(clip.config.projection_dim for clip in clips),
            pos_embed_max_size=24,
            qk_norm="rms_norm",
        )
        initialize(model)
    if recipe.start:
        folder = str(Path(recipe.start) / "transformer")
        carry_over(model, SD3Transformer2DModel.from_pretrained(folder, low_cpu_mem_usage=False))
    return model


def sigmoid_gelu(values: torch.Tensor) -> torch.Tensor:
    """Return the tanh form of GELU, written with a sigmoid: ``(1 + tanh u) / 2 = sigmoid(2 u)``.

    Compiled, it takes half the time of the other form, and as much less in its backward.

    Args:
        values: of any shape.

    Returns:
        The same shape.

    Example:
        >>> values = torch.linspace(-4, 4, 9)
        >>> torch.allclose(sigmoid_gelu(values), nn.functional.gelu(values, approximate="tanh"), atol=1e-6)
        True
    """
    doubled = 2 * math.sqrt(2 / math.pi) * (values + 0.044715 * values * values * values)
    return values * torch.sigmoid(doubled)


def flow_times(points: torch.Tensor) -> torch.Tensor:
    """Map uniform points to noise levels, logit-normal with mean 0 and deviation 1.

    Args:
        points: between 0 and 1.

    Returns:
        Noise levels ``s``, float32.

    Example:
        >>> flow_times(torch.tensor([0.5])).tolist()
        [0.5]
    """
    return torch.sigmoid(math.sqrt(2) * torch.erfinv(2 * points.double() - 1)).float()


def _fourfold(values_B: torch.Tensor) -> torch.Tensor:
    """Give one number an image the dimensions of latents."""
    return values_B.view(-1, 1, 1, 1)


def _compile(model: SD3Transformer2DModel) -> None:
    """Compile the blocks one by one: they are alike, and hooks on them stay outside."""
    for block in model.transformer_blocks:
        for feed_forward in (block.ff, block.ff_context):
            if feed_forward is not None:
                feed_forward.net[0].gelu = sigmoid_gelu
        block.forward = torch.compile(block.forward, dynamic=False)


class FlowTask:
    """How the transformer learns.

    Args:
        recipe: sizes and weights.
        encoders: two CLIP and a T5 encoder.
        layout: of all scenes; not needed where ``layout_weight`` is 0.
        is_compiled: whether blocks are compiled.
    """

    def __init__(
        self, recipe: FrozenRecipe, encoders: Encoders, layout: Layout | None = None, is_compiled: bool = False
    ) -> None:
        self.recipe, self.layout = recipe, layout
        self.model = build_transformer(recipe, encoders)
        self.model.set_attn_processor(ExplicitJointAttention())
        self.models: dict[str, nn.Module] = {"transformer": self.model}
        self._rows: list[torch.Tensor] = []
        if is_compiled:
            _compile(self.model)
        if recipe.layout_weight:
            self.models["layout"] = self._build_head()
            block = self.model.transformer_blocks[recipe.layout_block]
            block.register_forward_hook(lambda _module, _inputs, output: self._rows.append(output[1]))

    def errors(
        self,
        model: Callable[..., Any],
        latents: torch.Tensor,
        noise: torch.Tensor,
        times_B: torch.Tensor,
        text: Text,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Measure the squared error of the predicted velocity.

        Args:
            model: a transformer.
            latents: clean, shape ``(B, 4, y, x)``.
            noise: of the same shape.
            times_B: noise levels, 0 to 1.
            text: of the captions.
            bias: on scores of joint attention, see :func:`last_key_bias`.

        Returns:
            Mean over the elements of each image, shape ``(B,)``.
        """
        velocity = model(
            torch.lerp(latents, noise, _fourfold(times_B)),
            encoder_hidden_states=text.rows_BTW,
            pooled_projections=text.pooled_BP,
            timestep=1000 * times_B,
            joint_attention_kwargs=None if bias is None else {"attention_mask": bias},
            return_dict=False,
        )[0]
        return (velocity - (noise - latents)).square().mean(dim=(1, 2, 3))

    def uniform_times(self, points: torch.Tensor) -> torch.Tensor:
        """Map uniform points to noise levels without preference."""
        return points.float()

    def _build_head(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(stream(self.recipe.seed, "weights", 4).integers(2**31)))
            head = LayoutHead(self.recipe.heads * self.recipe.head_width)
            initialize(head)
        return head

    def loss(self, batch: Batch, text: Text) -> tuple[torch.Tensor, Measured]:
        """Measure what an update makes smaller.

        Args:
            batch: scenes, noise and times.
            text: of its captions.

        Returns:
            A scalar, and its parts by name.
        """
        recipe, times = self.recipe, flow_times(batch.points)
        patches = (batch.latents.shape[-1] // 2) * (batch.latents.shape[-2] // 2)
        bias = last_key_bias(text.bias_B, patches + text.rows_BTW.shape[1])
        self._rows.clear()
        flow = self.errors(self.model, batch.latents, batch.noise, times, text, bias).mean()
        measured = {"loss": float(flow.detach())}
        if not recipe.layout_weight:
            return flow, measured
        assert self.layout is not None
        read = self.models["layout"](self._rows.pop())
        layout = layout_loss(read, self.layout[batch.indices], 1 - times)
        measured["layout"] = float(layout.detach())
        return flow + recipe.layout_weight * layout, measured
