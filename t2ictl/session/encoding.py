"""The wrapper at ``pipe.encode_prompt``, from which a session learns what the pipeline encodes."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Protocol

from t2ictl.families import Adapter
from t2ictl.families.base import Encoded
from t2ictl.families.text_states import Encode

__all__ = ["EncodePromptWrapper", "Encoding"]


class Encoding(Protocol):
    """What is told of each call of ``encode_prompt``: a session."""

    adapter: Adapter

    def begin_call(self, encoded: Encoded, encode: Encode) -> None:
        """Start a pipeline call, before its prompt is encoded."""

    def end_encoding(self, encoded: Encoded, result: Any, encode: Encode) -> Any:
        """Return what the pipeline gets in place of ``result``."""


class EncodePromptWrapper:
    """Stands at ``pipe.encode_prompt`` for the length of a session and tells it what is encoded.

    Args:
        original: the pipeline's own ``encode_prompt``.
        session: is told of each call.
    """

    def __init__(self, original: Any, session: Encoding) -> None:
        self._original, self._session = original, session
        self._signature = inspect.signature(original)
        functools.update_wrapper(self, original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        adapter = self._session.adapter
        encoded = adapter.encoded(bound.arguments)
        encode: Encode = functools.partial(adapter.encode, self._original, bound.arguments)
        self._session.begin_call(encoded, encode)
        result = self._original(*args, **kwargs)
        return self._session.end_encoding(encoded, result, encode)
