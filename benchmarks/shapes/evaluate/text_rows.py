"""The rows that a pipeline's text encoders make of captions, and where each word is among them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from t2ictl.errors import BadSetting

#: Classes of encoders that are read, by the name in their configuration.
CLASSES: dict[str, Any] = {
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
    "T5EncoderModel": T5EncoderModel,
}
#: Padded length for a T5 whose tokenizer does not end earlier, as that of an embedded model.
T5_LENGTH = 64
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What an encoder made of ``N`` captions.

    Args:
        states: shape ``(N, T, C)``: the rows that the pipeline gives to its denoiser.
        offsets: first and last character of each token, shape ``(N, T, 2)``; empty for special tokens.
        whole: rows that stand for the whole caption, by name, each of shape ``(N, C)``.

    Example:
        >>> rows = Rows(states=np.arange(6).reshape(1, 3, 2), offsets=np.array([[[0, 0], [0, 3], [3, 5]]]), whole={})
        >>> rows.of_word(0, 0, 5).tolist()
        [4, 5]
    """

    states: np.ndarray
    offsets: np.ndarray
    whole: dict[str, np.ndarray]

    def of_word(self, caption: int, first: int, last: int) -> np.ndarray:
        """Return the row of the last token of a word, given its characters; shape ``(C,)``."""
        starts, ends = self.offsets[caption].T
        inside = np.flatnonzero((starts >= first) & (ends <= last) & (ends > starts))
        return self.states[caption, inside[-1]]


Encode = Callable[[Sequence[str]], Rows]


@torch.no_grad()
def _encode(model: Any, tokenizer: Any, texts: Sequence[str]) -> Rows:
    """Encode texts as the stock pipelines do, without an attention mask."""
    is_t5 = isinstance(model, T5EncoderModel)
    length = min(T5_LENGTH, tokenizer.model_max_length) if is_t5 else tokenizer.model_max_length
    states, offsets, pooled = [], [], []
    for start in range(0, len(texts), BATCH):
        chunk = list(texts[start : start + BATCH])
        said = tokenizer(chunk, padding="max_length", max_length=length, truncation=True, return_offsets_mapping=True)
        result = model(torch.tensor(said.input_ids), output_hidden_states=True)
        # Pipelines with several encoders read CLIP before its last layer, Stable Diffusion 1.x after its last norm.
        is_projected = isinstance(model, CLIPTextModelWithProjection)
        states.append((result.hidden_states[-2] if is_projected else result.last_hidden_state).numpy())
        ends = [row.index(tokenizer.eos_token_id) for row in said.input_ids]
        offsets += [
            [span if at < end else (0, 0) for at, span in enumerate(row)]
            for row, end in zip(said.offset_mapping, ends, strict=True)
        ]
        whole = {"end row": states[-1][np.arange(len(chunk)), ends]}
        if is_projected:
            whole["pooled row"] = result.text_embeds.numpy()
        pooled.append(whole)
    names = pooled[0] if pooled else {}
    return Rows(
        states=np.concatenate(states),
        offsets=np.array(offsets),
        whole={name: np.concatenate([each[name] for each in pooled]) for name in names},
    )


def load_encoders(folder: Path) -> dict[str, Encode]:
    """Find the text encoders of a model in the diffusers format.

    Args:
        folder: with ``text_encoder*`` and ``tokenizer*``.

    Returns:
        Functions from texts to rows, by the names of their folders and classes.

    Raises:
        BadSetting: there is none, or one of a class that is not read here.
    """
    found: dict[str, Encode] = {}
    for path in sorted(folder.glob("text_encoder*/config.json")):
        name = json.loads(path.read_text(encoding="utf-8"))["architectures"][0]
        if name not in CLASSES:
            raise BadSetting(
                f"{path.parent} is a {name}.", f"Use a model whose text encoders are {', '.join(CLASSES)}."
            )
        model = CLASSES[name].from_pretrained(path.parent).float().eval()
        tokenizer = AutoTokenizer.from_pretrained(folder / path.parent.name.replace("text_encoder", "tokenizer"))
        found[f"{path.parent.name} ({name})"] = functools.partial(_encode, model, tokenizer)
    if not found:
        raise BadSetting(f"{folder} has no text encoder.", "Name the folder of a model in the diffusers format.")
    return found
