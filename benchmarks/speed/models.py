"""What the measurements share: layer shapes of published models without weights, a counter, the embedded model.

Letters: ``B`` batch row, ``C`` channels, ``Y`` ``X`` latent rows and columns, ``K`` text token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils.flop_counter import FlopCounterMode

import t2ictl
from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.layers import Layer
from t2ictl.attention.passes import ActivePass, DenoiserPass
from t2ictl.attention.processor import ControlledAttention
from t2ictl.settings.windows import Step

__all__ = [
    "MODELS",
    "TOKENS",
    "embedded_model",
    "empty_unet",
    "first_pass",
    "flash_attention",
    "listen",
    "operations_of",
    "saved_bytes",
    "unet_inputs",
]

#: Positions of a text row of CLIP.
TOKENS = 77
#: The published configurations; weights play no part in counting.
MODELS: dict[str, dict[str, Any]] = {
    "SD 1.5, 512 x 512": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "SD 2.1, 768 x 768": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "SDXL, 1024 x 1024": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


def embedded_model(device: str | None = "cpu") -> Any:
    """Load the embedded model without its progress bar.

    Args:
        device: of torch; None for CUDA where there is one.

    Returns:
        The pipeline.
    """
    pipe = t2ictl.load("shapes", device=device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def empty_unet(name: str) -> UNet2DConditionModel:
    """Make a U-Net on torch's ``meta`` device: the real layer shapes in float16, and no contents.

    Args:
        name: a key of :data:`MODELS`.

    Returns:
        The U-Net.
    """
    with torch.device("meta"):
        return UNet2DConditionModel(**MODELS[name]).half().eval()


def unet_inputs(
    unet: UNet2DConditionModel, rows: int = 1, side: int | None = None, device: str = "meta"
) -> tuple[Tensor, dict[str, Any]]:
    """Make the arguments of one evaluation.

    Args:
        unet: the U-Net.
        rows: of the batch.
        side: rows and columns of the latent (cells); None for those of the model.
        device: of torch.

    Returns:
        A latent of zeros ``latent_BCYX`` that wants a gradient, and the other arguments.
    """
    side = side or int(unet.config.sample_size)

    def zeros(*shape: int) -> Tensor:
        """Something of this shape for each row."""
        return torch.zeros(rows, *shape, device=device, dtype=unet.dtype)

    keywords: dict[str, Any] = {"encoder_hidden_states": zeros(TOKENS, unet.config.cross_attention_dim)}
    if unet.config.addition_embed_type:
        keywords["added_cond_kwargs"] = {"text_embeds": zeros(1280), "time_ids": zeros(6)}
    return zeros(4, side, side).requires_grad_(), keywords


def listen(denoiser: nn.Module, layers: Sequence[Layer], processor_class: type = ControlledAttention) -> ActivePass:
    """Put our processors at some layers.

    Args:
        denoiser: the model; changed.
        layers: the layers.
        processor_class: that of the denoiser's port.

    Returns:
        Which tells them which pass is in progress.
    """
    active_pass = ActivePass()
    for layer in layers:
        attention: Any = denoiser.get_submodule(layer.module)
        attention.set_processor(processor_class(layer, attention.processor, active_pass))
    return active_pass


def first_pass(latent_BCYX: Tensor, *, guided: bool, **parts: Any) -> DenoiserPass:
    """Describe the first pass of a call with one prompt and one image.

    Args:
        latent_BCYX: the latent.
        guided: whether there is an unconditional row beside the conditional one.
        parts: what else there is to the pass, such as ``taps``.

    Returns:
        The pass.
    """
    return DenoiserPass(
        batch=BatchLayout.from_counts(prompts=1, images_per_prompt=1, guided=guided),
        latent_size=(latent_BCYX.shape[-2], latent_BCYX.shape[-1]),
        step=Step(index=0, total=1, timestep=1.0),
        **parts,
    )


@contextmanager
def flash_attention() -> Iterator[None]:
    """Use CUDA's flash kernel, which on the ``meta`` device nothing would choose: there torch takes the unfused one.

    Masks are left out: they take no product, and a flash kernel none.
    """

    def flash(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *, scale: Any = None, **others: Any
    ) -> Tensor:
        """Take the place of torch's function."""
        heads = (query, key, value)
        if has_torch_function(heads):  # as the function whose place it takes: a mode may be there to see the call
            seen: Tensor = handle_torch_function(flash, heads, *heads, attn_mask, scale=scale, **others)
            return seen
        out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(*heads, scale=scale)[0]
        return out

    with mock.patch.object(F, "scaled_dot_product_attention", flash):
        yield


def operations_of(run: Callable[[], Any]) -> tuple[Any, int]:
    """Count the operations of a piece of code.

    Args:
        run: the code.

    Returns:
        What it returned, and how many operations torch counted.

    Example:
        >>> operations_of(lambda: torch.zeros(2, 3, device="meta") @ torch.zeros(3, 4, device="meta"))[1]
        48
    """
    with FlopCounterMode(display=False) as counter:
        found = run()
    return found, int(counter.get_total_flops())


def saved_bytes(run: Callable[[], Tensor], denoiser: nn.Module) -> tuple[Tensor, int]:
    """Measure what autograd keeps for the backward pass of a piece of code.

    Args:
        run: the code.
        denoiser: the model, whose weights are not counted.

    Returns:
        What it returned, and the bytes of the distinct storages that are kept.

    Example:
        >>> x = torch.zeros(2, 3, device="meta", requires_grad=True)
        >>> saved_bytes(lambda: x.exp().sum(), nn.Identity())[1]  # the power itself, six numbers
        24
    """
    weights = {each.untyped_storage()._cdata for each in denoiser.parameters()}
    kept: dict[int, tuple[Tensor, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = (tensor, storage.nbytes())  # the tensor keeps its storage's address taken
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = run()
    return found, sum(size for _, size in kept.values())
