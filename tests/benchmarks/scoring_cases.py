"""BLIP at a toy size, and the words it knows."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from tests.evaluation.judge_cases import VISION

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] yes no a red blue green circle square bench cat dog and the ? of on".split()
PROMPT = "a red circle and a blue square"


def save_blip(folder: Path) -> Path:
    """BLIP's question answering at a toy size; [DEC] and [ENC] are the last two entries, as in the real one."""
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    tokens = transformers.BertTokenizerFast(vocab={word: number for number, word in enumerate(WORDS)})
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(WORDS) + 2, "encoder_hidden_size": 16, "max_position_embeddings": 64}
    ids = {"bos_token_id": len(WORDS), "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 3}
    vision = {key: value for key, value in VISION.items() if key != "num_hidden_layers"} | {"num_hidden_layers": 2}
    config = transformers.BlipConfig(text_config={**text, **ids}, vision_config=vision, projection_dim=16)
    torch.manual_seed(0)
    model = transformers.BlipForQuestionAnswering(config)
    with torch.no_grad():  # the default spread of 0.02 answers everything with one half
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    transformers.BlipProcessor(transformers.BlipImageProcessorPil(size=size), tokens).save_pretrained(folder)
    return folder
