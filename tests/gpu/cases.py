"""What the GPU tests measure, as functions of a pipeline: the same ones run at toy size on the CPU by default.

Sizes of published models come with random weights. Memory and precision depend on shapes, not on what was learned.
"""

from __future__ import annotations

import platform
import time
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import t2ictl
from t2ictl.controls.base import Control
from t2ictl.guidance.rules import Refinement
from t2ictl.processors import AttendAndExcite, AttentionSegregation
from t2ictl.session.session import Session
from tests import tiny

PROMPT = "a red circle and a blue square"
CONTROLS: list[Control] = [
    AttentionSegregation(refinement=Refinement(thresholds=((0.0, 0.9),), max_iterations=2)),
    AttendAndExcite(refinement=None),
]
# The published configurations; what is not named is the default of the class.
SD15: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}
SDXL: dict[str, Any] = {
    "cross": (False, True, True),
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "norm_num_groups": 32,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    # The toy encoder's pooled text has 32 numbers, where the published one has 1280: one small matrix.
    "projection_class_embeddings_input_dim": 6 * 256 + 32,
}


def place(pipe: Any, device: str) -> Any:
    """Move every part; the pipeline's own ``to`` warns about half precision on a CPU."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            torch.nn.Module.to(part, device)
    return pipe


def published(family: str, device: str, dtype: torch.dtype, **smaller: Any) -> Any:
    """A pipeline with the denoiser of a published model, weights random and made where they are needed."""
    pipe = (tiny.sd if family == "sd" else tiny.sdxl)(max_length=77, dtype=dtype)
    with torch.device(device):
        denoiser = tiny.unet(**((SD15 if family == "sd" else SDXL) | smaller))
    pipe.unet = torch.nn.Module.to(denoiser, dtype).eval()
    return place(pipe, device)


def embeddings(pipe: Any) -> dict[str, Tensor]:
    """Text states of the width that the denoiser wants; the toy text encoder has another."""
    source = torch.Generator().manual_seed(3)
    weight = next(pipe.unet.parameters())
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
        ("prompt_embeds", "negative_prompt_embeds"), (1, 77, pipe.unet.config.cross_attention_dim)
    )
    if hasattr(pipe, "text_encoder_2"):
        shapes |= {f"{kind}pooled_prompt_embeds": (1, 32) for kind in ("", "negative_")}
    return {name: torch.randn(*shape, generator=source).to(weight) for name, shape in shapes.items()}


def losses_and_moves(pipe: Any) -> dict[str, float]:
    """Run the controls once; every loss and move must be finite and every row must move."""
    with t2ictl.controlled(pipe, CONTROLS, on_nonfinite="raise") as session:
        latents = tiny.run(pipe, [PROMPT, "a cat and a dog"], steps=2)
    assert torch.isfinite(latents).all()
    assert session.cost.extra_forwards == 2 * len(session.trace) >= 8
    for entry in session.trace:
        assert torch.isfinite(entry.total).all() and torch.isfinite(entry.length).all()
        assert not entry.skipped.any()
    first = session.trace[0]
    assert (first.length > 0).all()
    return {"loss": float(first.total.mean()), "move": float(first.length.mean())}


def restored(pipe: Any) -> None:
    """After a session, also one that an error ends, the pipeline gives the same bits as before."""
    before, keys = tiny.run(pipe, PROMPT, steps=2), set(vars(pipe.unet))
    processors = dict(pipe.unet.attn_processors)

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    with t2ictl.controlled(pipe, CONTROLS, record=True):
        assert not torch.equal(tiny.run(pipe, PROMPT, steps=2), before)
    try:
        with t2ictl.controlled(pipe, CONTROLS, record=True):
            tiny.run(pipe, PROMPT, steps=2, callback_on_step_end=interrupt)
    except KeyboardInterrupt:
        pass
    assert all(now is processors[name] for name, now in pipe.unet.attn_processors.items())
    assert set(vars(pipe.unet)) == keys
    assert torch.equal(tiny.run(pipe, PROMPT, steps=2), before)


def batch_row_difference(pipe: Any) -> tuple[float, float]:
    """Largest difference of a row from its single run: under control, and in the plain pipeline."""
    prompts, found = [PROMPT, "a photo of a small green cat"], []
    for controls in ([AttentionSegregation()], []):
        noise = torch.randn(2, 4, 16, 16, generator=tiny.generator(2)).to(next(pipe.unet.parameters()))
        made = []
        for chosen in ([0, 1], [0], [1]):
            with t2ictl.controlled(pipe, controls):
                made.append(tiny.run(pipe, [prompts[row] for row in chosen], steps=4, latents=noise[chosen]))
        found.append(float((made[0] - torch.cat(made[1:])).abs().max()))
    return found[0], found[1]


def record_is_silent(pipe: Any) -> None:
    """Images with and without a record are bit-equal, with controls and without."""
    for controls in ([], CONTROLS):
        made = []
        for record in (False, True):
            with t2ictl.controlled(pipe, controls, record=record):
                made.append(tiny.run(pipe, PROMPT, steps=2))
        assert torch.equal(made[0], made[1])


def kernels(pipe: Any) -> dict[str, str]:
    """Run once with each fused kernel alone; "none for these shapes" where torch has none."""
    found = {}
    for backend in (
        SDPBackend.MATH,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
    ):
        try:
            with sdpa_kernel([backend]), t2ictl.controlled(pipe, CONTROLS, record=True) as session:
                made = tiny.run(pipe, PROMPT, steps=1)
            assert torch.isfinite(made).all() and float(session.record.map("circle").sum()) > 0
            found[backend.name] = "ran"
        except RuntimeError as error:
            if "kernel" not in str(error).lower():
                raise
            found[backend.name] = "none for these shapes"
    return found


def one_update(pipe: Any, side: int, *, truncate: bool) -> dict[str, float]:
    """Memory and time of one step with one update, whole or ended early.

    Args:
        pipe: a pipeline of the toy VAE (factor 4).
        side: latent cells a side.
        truncate: end extra pass after the last layer that is needed.

    Returns:
        MiB saved for the backward pass without weights; on a device also MiB of peak above what was held, and seconds.
    """
    device, weights = (
        next(pipe.unet.parameters()).device,
        {p.untyped_storage().data_ptr() for p in pipe.unet.parameters()},
    )
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def call(hooked: bool) -> Session:
        session = Session(
            pipe,
            (AttentionSegregation(),),
            recording=None,
            words=PROMPT,
            parser="grammar",
            raise_nonfinite=False,
            truncate=truncate,
        )
        with torch.autograd.graph.saved_tensors_hooks(keep if hooked else lambda x: x, lambda x: x), session:
            tiny.run(pipe, None, steps=1, guidance_scale=1.0, height=4 * side, width=4 * side, **embeddings(pipe))
        return session

    assert call(True).cost.extra_forwards == 1
    found = {"saved MiB": sum(kept.values()) / 2**20}
    if device.type == "cuda":  # memory and time without the counting of saved tensors
        torch.cuda.synchronize()
        held, start = torch.cuda.memory_allocated(device), time.perf_counter()
        found["peak MiB"] = (call(False).cost.peak_bytes - held) / 2**20
        torch.cuda.synchronize()
        found["seconds"] = time.perf_counter() - start
    return found


def table(rows: list[tuple[str, str, str]], device: str) -> str:
    """The figures as a markdown table that says where they were taken."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, t2ictl {t2ictl.__version__}"
    lines = [f"Device: {name}; {versions}.", "", "| case | figure | value |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {case} | {figure} | {value} |" for case, figure, value in rows)])
