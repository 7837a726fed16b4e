"""Export: the kept encoders as ordinary folders, named as in a Stable Diffusion 3 model."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from t2ictl.benchmarks.shapes.train.export import clean_configs, move_to_place
from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.benchmarks.shapes.train.text.rounds import checkpoint_of
from t2ictl.benchmarks.shapes.train.text.settings import CLIP, ContrastiveRecipe, SpanRecipe
from t2ictl.benchmarks.shapes.train.text.t5 import build_t5
from t2ictl.benchmarks.shapes.train.text.tokenizer import build_t5_tokenizer
from t2ictl.benchmarks.shapes.train.text.towers import Towers
from t2ictl.benchmarks.shapes.train.vocabulary import build_tokenizer, save_tokenizer
from t2ictl.errors import BadSetting

#: What follows ``text_encoder`` and ``tokenizer`` in the names of the two folders of a part.
SUFFIXES = {"clip": "", "clip-2": "_2", "t5": "_3"}


@torch.no_grad()
def round_weights(model: torch.nn.Module) -> None:
    """Round the weights to bfloat16's eight bits of precision, in place, in files of float32.

    transformers loads weights in the precision of the file, and the plain pipeline must come up
    in float32 on CPUs without bfloat16; two of four bytes are then zero, which a wheel packs away.

    Args:
        model: in float32.

    Example:
        >>> layer = torch.nn.Linear(1, 1)
        >>> _ = layer.weight.data.fill_(1.001); round_weights(layer); layer.weight.item()
        1.0
    """
    for weight in model.parameters():
        weight.copy_(weight.bfloat16().float())


def encoder_of(model: T5ForConditionalGeneration) -> T5EncoderModel:
    """Take the encoder out of a T5, with weights of its own.

    Args:
        model: encoder and decoder.

    Returns:
        The encoder alone, in evaluation mode.

    Example:
        >>> encoder_of(build_t5(SpanRecipe(), build_t5_tokenizer())).config.is_encoder_decoder
        False
    """
    encoder = T5EncoderModel(type(model.config).from_dict(model.config.to_dict()))
    encoder.shared.load_state_dict(model.shared.state_dict())
    encoder.encoder.load_state_dict(model.encoder.state_dict())
    return encoder.eval()


def trained(recipe: ContrastiveRecipe | SpanRecipe, folder: Path) -> CLIPTextModelWithProjection | T5EncoderModel:
    """Load the kept encoder of a run as it stands.

    Args:
        recipe: of the run.
        folder: of the run.

    Returns:
        The encoder, in evaluation mode, not rounded.

    Raises:
        BadSetting: the run has no checkpoint.
    """
    path = checkpoint_of(recipe, folder)
    if not path.exists():
        raise BadSetting(f"{folder} has no checkpoint.", "Train first.")
    state = torch.load(path, weights_only=True)
    if isinstance(recipe, SpanRecipe):
        model = build_t5(recipe, build_t5_tokenizer())
        model.load_state_dict(state["model"])
        return encoder_of(model)
    towers = Towers(recipe, build_tokenizer(Recipe()))
    towers.load_state_dict(state["model"])
    return towers.text.eval()


def export_part(recipe: ContrastiveRecipe | SpanRecipe, folder: Path, target: Path) -> None:
    """Write encoder and tokenizer of a run, each first beside its place and then in one move.

    Args:
        recipe: of the run.
        folder: of the run.
        target: folder of the model; gets ``text_encoder*`` and ``tokenizer*`` of the part.
    """
    model = trained(recipe, folder)
    round_weights(model)
    partial, suffix = target / f"{recipe.part}.{os.getpid()}.partial", SUFFIXES[recipe.part]
    model.save_pretrained(partial / f"text_encoder{suffix}", safe_serialization=True)
    tokenizer: CLIPTokenizer | T5Tokenizer
    if isinstance(recipe, SpanRecipe):
        # As long as the rows of the CLIPs beside it: the length for which denoisers are made.
        tokenizer = build_t5_tokenizer(CLIP.length)
        tokenizer.save_pretrained(partial / f"tokenizer{suffix}")
    else:
        tokenizer = build_tokenizer(Recipe())
        save_tokenizer(tokenizer, partial / f"tokenizer{suffix}")
    clean_configs(partial)
    for path in sorted(partial.iterdir()):
        move_to_place(path, target / path.name)
    partial.rmdir()
