"""Models of transformers at a toy size with random weights, as folders, and images for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.tiny import tokenizer

SIDE = 32


def drawings(count: int = 5) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(count)]


def image_processor() -> Any:
    return transformers.CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )


def text_part(**more: Any) -> dict[str, Any]:
    own = tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": own.bos_token_id, "eos_token_id": own.eos_token_id, "pad_token_id": own.pad_token_id}
    return {**sizes, **ids, "vocab_size": len(own), "max_position_embeddings": 16, **more}


VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
}


def save_clip(folder: Path) -> Path:
    """A CLIP model and its processor."""
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text_part(), vision_config=VISION, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPProcessor(image_processor(), tokenizer()).save_pretrained(folder)
    return folder


def save_vlm(folder: Path) -> Path:
    """A vision-language model of the LLaVA kind."""
    torch.manual_seed(0)
    own = tokenizer(max_length=512)
    own.add_special_tokens({"additional_special_tokens": ["<image>"]})
    place = own.convert_tokens_to_ids("<image>")
    text = transformers.LlamaConfig(
        vocab_size=len(own), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION), text_config=text, image_token_index=place
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    transformers.LlavaProcessor(
        image_processor(), own, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(folder)
    return folder


def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are put to a vision-language model from here on."""
    texts: list[str] = []
    original = transformers.LlavaProcessor.__call__

    def listen(self: Any, *given: Any, **asked: Any) -> Any:
        texts.append(asked["text"])
        return original(self, *given, **asked)

    monkeypatch.setattr(transformers.LlavaProcessor, "__call__", listen)
    return texts
