"""Captions as pipelines tidy them before a text encoder reads them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from t2ictl.families.transformers import default_argument

__all__ = ["tidying"]


def tidying(pipe: Any, how: Mapping[str, Any]) -> Callable[[str], str]:
    """Return what a pipeline does with a caption: its own method, so that words are sought in what it makes.

    Args:
        pipe: a pipeline of PixArt or SANA.
        how: arguments of ``encode_prompt``; without ``clean_caption`` as a call by itself has it.

    Returns:
        From the user's text to the one that is tokenized.
    """
    is_cleaned = how.get("clean_caption", default_argument(pipe, "clean_caption") or False)

    def tidied(text: str) -> str:
        """Tidy one caption; what the pipeline logs on the way, it logs again when it encodes."""
        logger = logging.getLogger(type(pipe).__module__)
        before = logger.level
        logger.setLevel(logging.ERROR)
        try:
            found: list[str] = pipe._text_preprocessing(text, clean_caption=is_cleaned)
        finally:
            logger.setLevel(before)
        return found[0]

    return tidied
