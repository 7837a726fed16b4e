"""Named errors: each says what is wrong, which value, and what to do.

Every error of this library derives from :class:`T2ictlError`. Where Python has a
built-in class for the same situation (a bad value, a missing word) the named error also
derives from that, so that code that already catches the built-in keeps working. The one warning with a name of its
own is at the end.
"""

from __future__ import annotations

_LONGEST = 800  # characters of a cause, or of a remedy


def shown(value: object, most: int = 200) -> str:
    """Return a value as it stands in a message: bounded, whatever it is and however it shows itself.

    Args:
        value: anything.
        most: most characters.

    Returns:
        Its ``repr``, or its class where it has none.

    Example:
        >>> shown([1, 2])
        '[1, 2]'
    """
    try:
        text = repr(value)
    except Exception:  # Python writes no integer of over 4,300 digits, and a class can do anything
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= most else f"{text[:most]}..."


class T2ictlError(Exception):
    """Base of all errors of this library: cause, value, remedy.

    Args:
        cause: what is wrong, with the offending value, one sentence.
        remedy: what the user can do about it, one sentence; empty if nothing.

    Example:
        >>> str(T2ictlError("No word 'dog' in the prompt.", "Use one of: red, cat."))
        "No word 'dog' in the prompt. Use one of: red, cat."
    """

    def __init__(self, cause: str, remedy: str = "") -> None:
        self.cause = _shortened(cause)
        self.remedy = _shortened(remedy)
        super().__init__(f"{self.cause} {self.remedy}".strip())


def _shortened(text: str) -> str:
    """Both ends of a text that is too long to be read; values of any length come into messages."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST * 2 // 3]} ... {text[-_LONGEST // 4 :]}"


class BadSetting(T2ictlError, ValueError):
    """A setting has a value outside its range or of the wrong kind."""


class SpanNotFound(T2ictlError, LookupError):
    """A word or phrase that was asked for is not in the prompt, or was cut off by the token limit."""


class AmbiguousWord(T2ictlError, LookupError):
    """A word stands at different token positions in the two prompts of a two-encoder pipeline."""


class PromptUnknown(T2ictlError):
    """The pipeline was given embeddings only, and a control needs to know the words."""


class NoLayerMatched(T2ictlError, LookupError):
    """A layer filter matches no attention layer of this model."""


class UnsupportedPipeline(T2ictlError, TypeError):
    """The pipeline, its batch layout, or one of its attention processors is not one that a control can act on."""


class ControlConflict(T2ictlError, ValueError):
    """Two controls want to own the same thing, or a pipeline already has an open session."""


class ShapeMismatch(T2ictlError, ValueError):
    """A tensor, mask or box does not have the shape that the place it is for demands."""


class NonFiniteLoss(T2ictlError, ArithmeticError):
    """A loss or its gradient is not a finite number, and skipping the update was not allowed."""


class BudgetExceeded(T2ictlError, MemoryError):
    """What was asked to be recorded needs more memory than its budget."""


class OutOfMemory(T2ictlError, MemoryError):
    """The images that were asked for need more memory than there is."""


class MoveLost(T2ictlError, RuntimeError):
    """A latent was moved for a denoising step, and no scheduler step took the moved latent."""


class ForeignCall(T2ictlError, RuntimeError):
    """The denoiser was called by something other than the pipeline that the session controls."""


class NeedsSession(T2ictlError, TypeError):
    """What was asked for cannot be done by attention processors alone; it needs ``controlled(...)``."""


class NotRecorded(T2ictlError, LookupError):
    """A map was asked for that this session did not record."""


class MissingExtra(T2ictlError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""


class Cancelled(T2ictlError):
    """The user asked the generation to stop."""


class ControlIdle(UserWarning):
    """A control does nothing in a call, or for some of its images: told before the first step, with the reason."""
