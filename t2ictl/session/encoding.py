"""The wrapper at ``pipe.encode_prompt``, from which a session learns what the pipeline encodes."""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from t2ictl.families import Adapter
from t2ictl.families.arguments import Encoded
from t2ictl.families.text_states import Encode

__all__ = ["CallPlace", "EncodePromptWrapper", "Encoding", "call_place"]


class Encoding(Protocol):
    """What is told of each call of ``encode_prompt``: a session."""

    adapter: Adapter

    @property
    def is_open(self) -> bool:
        """Whether anything is to be done."""

    def belongs_to_call(self, place: CallPlace | None) -> bool:
        """Whether a text is encoded on the way, by a callback of the call that is running."""

    def goes_on_encoding(self, place: CallPlace | None) -> bool:
        """Whether the call that has just begun encodes once more: its negative prompt, or for another encoder."""

    def more_encoded(self, result: Any) -> None:
        """Learn what a further encoding of the same call returned."""

    def begin_call(self, encoded: Encoded, encode: Encode, place: CallPlace | None) -> None:
        """Start a pipeline call, before its prompt is encoded."""

    def end_encoding(self, encoded: Encoded, result: Any, encode: Encode) -> Any:
        """Return what the pipeline gets in place of ``result``."""

    def encoded_on_the_way(self, encoded: Encoded, result: Any) -> None:
        """Learn the words of a text that was encoded in the middle of a call."""


class EncodePromptWrapper:
    """Stands at ``pipe.encode_prompt`` for the length of a session and tells it what is encoded.

    Whoever has kept it passes through to the pipeline's own once the session is closed; a deep copy of the pipeline
    gets the pipeline's own in its place.

    Args:
        original: the pipeline's own ``encode_prompt``.
        session: is told of each call.
    """

    def __init__(self, original: Any, session: Encoding) -> None:
        self.original, self._session = original, session
        self._signature = session.adapter.encode_signature(original)
        functools.update_wrapper(self, original)

    @property
    def is_open(self) -> bool:
        """Whether its session is."""
        return self._session.is_open

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        session = self._session
        if not session.is_open:
            return self.original(*args, **kwargs)
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        adapter, place = session.adapter, call_place(session.adapter.pipe)
        if session.goes_on_encoding(place):
            result = self.original(*args, **kwargs)
            session.more_encoded(result)
            return result
        encoded = adapter.encoded(bound.arguments)
        if session.belongs_to_call(place):
            result = self.original(*args, **kwargs)
            session.encoded_on_the_way(encoded, result)
            return result
        encode: Encode = functools.partial(adapter.encode, self.original, bound.arguments)
        session.begin_call(encoded, encode, place)
        result = self.original(*args, **kwargs)
        return session.end_encoding(encoded, result, encode)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.original, memo)


@dataclass(frozen=True)
class CallPlace:
    """Where in its own ``__call__`` a pipeline stands; the same place of a later call is equal.

    Args:
        code: its code.
        instruction: number of the instruction.
        frame: identity of the call in progress; that of one that is over may come again.
    """

    code: Any
    instruction: int
    frame: int = field(compare=False)


def call_place(pipe: Any) -> CallPlace | None:
    """Find where in its own ``__call__`` a pipeline stands, if that is running.

    Its own encoding and its callbacks are different places.

    Args:
        pipe: the pipeline.

    Returns:
        The place, or None.
    """
    own = (vars(cls).get("__call__") for cls in type(pipe).__mro__)
    codes = {getattr(inspect.unwrap(each), "__code__", None) for each in own if each is not None}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in codes and frame.f_locals.get("self") is pipe:
            return CallPlace(frame.f_code, frame.f_lasti, id(frame))
        frame = frame.f_back
    return None
