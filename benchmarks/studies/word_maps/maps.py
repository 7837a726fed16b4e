"""Measure whether the maps of words lie on their objects: ``t2ictl bench study word-maps --model shapes|DIR``.

Generated: what users see, the maps of a session's record, mean over all steps, on images that the judge finds right.
Teacher-forced: drawn images are encoded, noised to one time, and denoised once with their own honest caption. What
pointing and overlap are stands in ``scoring.py``. A U-Net is read by map size; a transformer of SD 3 in every reading
of joint attention, by block and by segment of the text row.
"""

from __future__ import annotations

import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline

from t2ictl.benchmarks.arguments import ArgumentParser
from t2ictl.benchmarks.embedded import add_model, open_model
from t2ictl.benchmarks.studies.word_maps import joint, unet
from t2ictl.errors import BadSetting

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Print the tables of a model.

    Args:
        arguments: command-line arguments; None for those of the process.

    Returns:
        Exit status 0.
    """
    parser = ArgumentParser(prog="t2ictl bench study word-maps", description=__doc__)
    add_model(parser, steps=False)
    parser.add_argument("--scenes", type=int, default=100, help="drawn images")
    parser.add_argument("--generated", type=int, default=None, help="generated images of each kind; default: as many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time", type=int, default=500, help="of a U-Net: step of the training schedule, 0 to 999")
    parser.add_argument(
        "--noise", type=float, nargs="+", default=list(joint.NOISES), help="of a flow model: noise levels, 0 to 1"
    )
    parser.add_argument("--objects", type=int, choices=(1, 2, 3), default=2, help="of a flow model: of a drawn scene")
    options = parser.parse_args(arguments)
    options.generated = options.scenes if options.generated is None else options.generated
    torch.set_num_threads(1)
    pipe = open_model(options.model)
    if isinstance(pipe, StableDiffusion3Pipeline):
        joint.print_tables(pipe, options)
    elif isinstance(pipe, StableDiffusionPipeline):
        unet.print_tables(pipe, options)
    else:
        raise BadSetting(f"{type(pipe).__name__} is not measured here.", "Use a pipeline of Stable Diffusion 1 or 3.")
    return 0
