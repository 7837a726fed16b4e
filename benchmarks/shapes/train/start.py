"""Start from an earlier exported model instead of from nothing.

The vocabulary may have grown since: rows of the token embedding are carried over by the
text of the token, and new tokens keep the values of an untrained model.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from t2ictl.errors import BadSetting

EMBEDDING = "token_embedding.weight"


def carry_over(model: torch.nn.Module, earlier: torch.nn.Module, skip: str = "") -> None:
    """Copy all weights of an earlier model of the same sizes.

    Args:
        model: changed in place.
        earlier: gives the weights.
        skip: names that end so are left alone; empty: none.

    Raises:
        BadSetting: the two models differ in a name or a size.

    Example:
        >>> fresh, trained = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> carry_over(fresh, trained); bool((fresh.weight == trained.weight).all())
        True
    """
    weights = dict(earlier.named_parameters())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if skip and name.endswith(skip):
                continue
            if name not in weights or weights[name].shape != weight.shape:
                raise BadSetting(
                    f"{name} is not in the model to start from, or has another size there.",
                    "Start from a model of the same sizes, or from nothing.",
                )
            weight.copy_(weights[name])


def carry_over_tokens(
    embedding: torch.Tensor, vocabulary: dict[str, int], earlier: torch.Tensor, earlier_vocabulary: dict[str, int]
) -> None:
    """Copy the rows of a token embedding by the text of the token.

    Args:
        embedding: shape ``(entries, width)``, changed in place.
        vocabulary: token to row.
        earlier: of the earlier model.
        earlier_vocabulary: its tokens.

    Example:
        >>> rows = torch.zeros(2, 1)
        >>> carry_over_tokens(rows, {"new": 0, "old": 1}, torch.tensor([[5.0]]), {"old": 0}); rows.tolist()
        [[0.0], [5.0]]
    """
    with torch.no_grad():
        for token, row in vocabulary.items():
            if token in earlier_vocabulary:
                embedding[row] = earlier[earlier_vocabulary[token]]


def start_autoencoder(model: AutoencoderKL, folder: Path) -> None:
    """Load the weights of an exported model into an autoencoder.

    Args:
        model: changed in place.
        folder: of the exported model.
    """
    carry_over(model, AutoencoderKL.from_pretrained(str(folder / "vae"), low_cpu_mem_usage=False))


def start_denoiser(text: CLIPTextModel, unet: UNet2DConditionModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Load the weights of an exported model into a text encoder and a denoiser.

    Args:
        text: changed in place.
        unet: changed in place.
        tokenizer: of the new model.
        folder: of the exported model.
    """
    carry_over(unet, UNet2DConditionModel.from_pretrained(str(folder / "unet"), low_cpu_mem_usage=False))
    earlier = CLIPTextModel.from_pretrained(str(folder / "text_encoder"))
    carry_over(text, earlier, skip=EMBEDDING)
    carry_over_tokens(
        text.get_input_embeddings().weight,
        tokenizer.get_vocab(),
        earlier.get_input_embeddings().weight,
        CLIPTokenizer.from_pretrained(str(folder / "tokenizer")).get_vocab(),
    )
