"""Our latent updates beside those of diffusers' own Attend-and-Excite pipeline: one U-Net, loss, schedule and noise.

The U-Net has the layer shapes of Stable Diffusion 1.5 and random weights, so the images mean nothing and the work is
the real one. Both pipelines are run as users run them, in turn; each update is timed inside of its run, from the call
of the denoiser to the moved latent. Latents at the end are compared: the same work was done::

    t2ictl bench speed published               # 512 x 512, about 10 minutes on two cores
    t2ictl bench speed published --side 32     # 256 x 256
    t2ictl bench speed published --operations  # whole images of 50 steps, counted; seconds

On a CPU, times hang on what fresh memory costs: the C library takes large tensors from the system and gives them back
each time. The page faults that this makes are printed. With glibc, ``MALLOC_MMAP_MAX_=0
MALLOC_TRIM_THRESHOLD_=68719476736`` before the command makes it keep them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import diffusers
import torch
from diffusers import DDIMScheduler, StableDiffusionAttendAndExcitePipeline, UNet2DConditionModel
from torch import Tensor

import t2ictl
from t2ictl import Window
from t2ictl.benchmarks.markdown import print_table
from t2ictl.benchmarks.speed.models import MODELS, TOKENS, embedded_model
from t2ictl.benchmarks.speed.pairs import device_and_dtype, now
from t2ictl.benchmarks.speed.update import measure
from t2ictl.families import find_adapter
from t2ictl.guidance.rules import StepSize
from t2ictl.processors.attend_and_excite import AttendAndExcite

__all__ = ["Times", "run", "whole_image"]

PROMPT, WORDS = "a red circle and a blue square", ("circle", "square")


@dataclass
class Times:
    """Seconds of one run.

    Args:
        updates: of each latent update.
        whole: of the whole run, with the passes that make the image.
        faults: pages of memory that the system had to give during the run.
        latents: the result.
    """

    updates: list[float] = field(default_factory=list)
    whole: float = 0.0
    faults: int = 0
    latents: Tensor = field(default_factory=lambda: torch.empty(0))


def _pipeline(side: int, device: str, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """A stock pipeline around a U-Net with the shapes of SD 1.5, and the arguments of its call."""
    pipe = embedded_model()
    torch.manual_seed(0)
    config = {**MODELS["SD 1.5, 512 x 512"], "sample_size": side}
    pipe.register_modules(unet=UNet2DConditionModel(**config).to(device, dtype).eval())
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.tokenizer.model_max_length = TOKENS
    texts = torch.randn(2, 1, TOKENS, 768, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(2)).to(device, dtype)
    pixels = side * pipe.vae_scale_factor
    call = {"prompt_embeds": texts[0], "negative_prompt_embeds": texts[1], "height": pixels, "width": pixels}
    return pipe, {**call, "latents": noise, "output_type": "latent", "guidance_scale": 7.5}


def _faults() -> int:
    """Pages that the system has given to this process so far; 0 where it does not say."""
    try:
        import resource
    except ImportError:  # not a Unix
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def ours(pipe: Any, call: dict[str, Any], steps: int) -> Times:
    """Run ours.

    Args:
        pipe: a stock pipeline.
        call: arguments of its call.
        steps: denoising steps; latents move at all of them.

    Returns:
        The times.
    """
    import t2ictl.session.mover as calls

    times, update = Times(), calls.optimize

    def timed(*args: Any, **more: Any) -> Any:
        start = now()
        move = update(*args, **more)
        times.updates.append(now() - start)
        return move

    control = AttendAndExcite(concepts=WORDS, refinement=None, parity=True, window=Window(), step=StepSize())
    start = now()
    with mock.patch.object(calls, "optimize", timed), t2ictl.controlled(pipe, [control], prompt=PROMPT):
        times.latents = pipe(**call, num_inference_steps=steps).images
    times.whole = now() - start
    return times


def theirs(pipe: Any, call: dict[str, Any], steps: int) -> Times:
    """Run diffusers' own pipeline on the same parts.

    Args:
        pipe: the pipeline that has them.
        call: arguments of its call.
        steps: denoising steps; latents move at all of them.

    Returns:
        The times.
    """
    parts = {name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    stock = StableDiffusionAttendAndExcitePipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    stock.set_progress_bar_config(disable=True)
    times, begun, update = Times(), [0.0], stock._update_latent

    def begin(*_: Any) -> None:
        if torch.is_grad_enabled():
            begun[0] = now()

    def timed(*args: Any, **more: Any) -> Any:
        moved = update(*args, **more)
        times.updates.append(now() - begun[0])
        return moved

    stock._update_latent = timed
    hook, processors = pipe.unet.register_forward_pre_hook(begin), pipe.unet.attn_processors
    size = call["latents"].shape[-1] // find_adapter(pipe).semantic_stride  # the maps that ours read
    prompt = t2ictl.parse(pipe, PROMPT)
    indices = [prompt.find(word).tokens[0] for word in WORDS]
    start = now()
    try:
        found = stock(
            prompt=None, token_indices=indices, num_inference_steps=steps, max_iter_to_alter=steps, thresholds={},
            attn_res=(size, size), **call,
        )  # fmt: skip
    finally:
        hook.remove()
        # Those that were there, which are fused; `set_default_attn_processor` would leave explicit ones to the others.
        pipe.unet.set_attn_processor(processors)
    times.whole, times.latents = now() - start, found.images
    return times


def plain(pipe: Any, call: dict[str, Any], steps: int) -> Times:
    """Run the stock pipeline alone.

    Args:
        pipe: the pipeline.
        call: arguments of its call.
        steps: denoising steps.

    Returns:
        The times; there are no updates.
    """
    start = now()
    latents = pipe(**call, num_inference_steps=steps).images
    return Times(whole=now() - start, latents=latents)


def _timed(way: Callable[..., Times], pipe: Any, call: dict[str, Any], steps: int) -> Times:
    before = _faults()
    times = way(pipe, call, steps)
    times.faults = _faults() - before
    return times


def whole_image(update: float, updates: int, steps: int = 50) -> float:
    """Compute the work of an image over that of a plain one.

    Args:
        update: work of one latent update, in forward passes of one row.
        updates: how many.
        steps: denoising steps, each of two rows.

    Returns:
        The ratio.

    Example:
        >>> whole_image(1.08, 25)
        1.27
    """
    return (2 * steps + updates * update) / (2 * steps)


def _operations(numbers: Sequence[int]) -> Iterator[tuple[str, ...]]:
    for name in MODELS:
        for way, published in (("published", True), ("ours", False)):
            found = measure(name, published=published)
            update = found["forward"] + found["backward"]
            yield name, way, f"{update:.3f}", *(f"{whole_image(update, number):.3f}" for number in numbers)


def run(
    side: int = 64,
    pairs: int = 3,
    steps: int = 2,
    operations: bool = False,
    updates: Sequence[int] = (25, 50),
    device: str | None = None,
) -> None:
    """Print ratios of times and page faults, or of operations.

    Args:
        side: of the latent (cells).
        pairs: runs of each way, after one that is not counted.
        steps: denoising steps of a run.
        operations: count whole images, and time nothing.
        updates: numbers of updates in 50 steps whose operations are counted.
        device: of torch; None for CUDA where there is one.
    """
    if operations:
        head = [f"{number} updates in 50 steps (x plain)" for number in updates]
        print_table(("model", "way", "one update (F)", *head), _operations(updates))
        return
    diffusers.utils.logging.set_verbosity_error()  # their pipeline warns that it is deprecated
    device, dtype = device_and_dtype(device)
    pipe, call = _pipeline(side, device, dtype)
    is_cuda = device.startswith("cuda")
    name = torch.cuda.get_device_name(device) if is_cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, {dtype}, torch {torch.__version__}, diffusers {diffusers.__version__}, {8 * side} pixels\n")
    ways: tuple[Callable[..., Times], ...] = (plain, ours, theirs)
    first, *found = ([_timed(way, pipe, call, steps) for way in ways] for _ in range(pairs + 1))
    apart = (first[1].latents - first[2].latents).abs().max() / first[2].latents.abs().max()
    print(f"Largest difference of the two results: {float(apart):.1e} of the largest value.\n")
    print_table(("wall-clock time", "median", "each"), _ratios(found))
    print()
    runs = zip(("plain", "ours", "diffusers' pipeline"), zip(*found, strict=True), strict=True)
    faults = ((way, f"{statistics.median(each.faults / steps for each in own):,.0f}") for way, own in runs)
    print_table(("run", "page faults a step"), faults)


def _ratios(found: Sequence[Sequence[Times]]) -> Iterator[tuple[str, ...]]:
    """Rows of the table of times; a run is that of the plain pipeline, ours and diffusers'."""
    step = "a whole step with its update"
    ratios = {
        "an update, diffusers' pipeline / ours": [sum(c.updates) / sum(b.updates) for _, b, c in found],
        f"{step}, diffusers' pipeline / ours": [c.whole / b.whole for _, b, c in found],
        f"{step}, ours / plain": [b.whole / a.whole for a, b, _ in found],
        f"{step}, diffusers' pipeline / plain": [c.whole / a.whole for a, _, c in found],
    }
    for label, each in ratios.items():
        yield label, f"{statistics.median(each):.2f}", ", ".join(f"{ratio:.2f}" for ratio in each)
