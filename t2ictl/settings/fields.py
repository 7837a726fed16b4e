"""Settings classes: frozen, keyword-only, validated, and able to describe themselves.

Validation, coercion and the JSON form are pydantic's. What is added here is one thing:
a bad value raises :class:`t2ictl.errors.BadSetting` with one readable line.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from t2ictl.errors import BadSetting, shown

__all__ = ["describe", "given_fields", "setting", "settings_class"]

T = TypeVar("T")

_DEPTH = 6  # of lists in lists, as far as settings go

_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


def setting(
    default: Any,
    *,
    help: str,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """Declare one field of a settings class, with the help text that every front end shows.

    Args:
        default: value when the user gives none.
        help: what the field does, one line, with its unit.
        low: smallest allowed value, inclusive.
        high: largest allowed value, inclusive.

    Returns:
        The field, for the right-hand side of an annotation in a class body.

    Example:
        >>> from t2ictl.settings.fields import setting, settings_class
        >>> @settings_class
        ... class Blur:
        ...     sigma: float = setting(default=0.5, help="width (cells)", low=0.0)
        >>> Blur(sigma=1).sigma
        1.0
    """
    return Field(default, description=help, ge=low, le=high)


def _readable(error: ValidationError, owner: str) -> BadSetting:
    details = error.errors()[0]
    inner = details.get("ctx", {}).get("error")
    if isinstance(inner, BadSetting):
        return inner
    place = ".".join(str(part) for part in details["loc"])
    return _bad(f"{owner}.{place}", details.get("input"), details["msg"].rstrip("."))


def _bad(place: str, value: object, reason: str) -> BadSetting:
    owner = place.partition(".")[0]
    return BadSetting(
        f"{place} cannot be {shown(value)}: {reason}.",
        f"`t2ictl controls` lists every field of {owner} with its range.",
    )


def _require_unicode(place: str, value: object, depth: int = 0) -> None:
    """Refuse half a character, which no tokenizer reads and no file holds; JSON and the command line let it through."""
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise _bad(place, value, "It holds half a character (a lone surrogate)") from None
    elif isinstance(value, (list, tuple, dict)) and depth < _DEPTH:
        for each in [*value, *value.values()] if isinstance(value, dict) else value:
            _require_unicode(place, each, depth + 1)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting,))
def settings_class(cls: type[T]) -> type[T]:
    """Turn a class body into a frozen, keyword-only, validated settings class.

    Args:
        cls: the class, with annotated fields declared through :func:`setting`.

    Returns:
        The class as a frozen dataclass whose constructor raises :class:`BadSetting`.

    Example:
        >>> from t2ictl.settings.fields import setting, settings_class
        >>> @settings_class
        ... class Blur:
        ...     sigma: float = setting(default=0.5, help="width (cells)", low=0.0)
        >>> Blur(sigma=-1)
        Traceback (most recent call last):
        t2ictl.errors.BadSetting: Blur.sigma cannot be -1: Input should be greater than or equal to 0...
    """
    made: Any = pydantic_dataclass(frozen=True, kw_only=True, config=_CONFIG)(cls)
    checked: Callable[..., None] = made.__init__

    @functools.wraps(checked)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if args:  # pydantic takes them in field order, which would make that order part of the promise
            raise BadSetting(
                f"{type(self).__name__} takes its settings by name, not {shown(args[0])} by position.",
                f"Write {type(self).__name__}(name=value).",
            )
        for name, value in kwargs.items():
            _require_unicode(f"{type(self).__name__}.{name}", value)
        try:
            checked(self, **kwargs)
        except ValidationError as error:
            raise _readable(error, type(self).__name__) from None
        # What was chosen and what was left open look alike; presets fill in the latter.
        vars(self)["_given"] = frozenset(path for name, value in kwargs.items() for path in _paths(name, value))

    made.__init__ = __init__
    return made


def given_fields(settings: Any) -> frozenset[str]:
    """Return the fields that whoever made some settings chose; all others were left at their defaults.

    Args:
        settings: an instance of a class made by :func:`settings_class`.

    Returns:
        Names of fields; of a field that has fields of its own, those that were chosen, behind a dot.

    Example:
        >>> from t2ictl.processors import AttendAndExcite
        >>> from t2ictl.settings.windows import Window
        >>> sorted(given_fields(AttendAndExcite(strength=0.5, window=Window(stop=1.0))))
        ['strength', 'window.stop']
    """
    found: frozenset[str] = vars(settings).get("_given", frozenset())
    return found


def _paths(name: str, value: Any) -> list[str]:
    """What was chosen of a field: the whole, or some fields of it."""
    inner: Iterable[str] = ()
    if isinstance(value, Mapping):
        inner = (path for key, each in value.items() for path in _paths(str(key), each))
    elif "_given" in getattr(value, "__dict__", {}):
        inner = given_fields(value)
    return sorted(f"{name}.{path}" for path in inner) or [name]


def describe(cls: type) -> dict[str, Any]:
    """Return the JSON schema of a settings class: fields, types, ranges, defaults and help.

    Command line, editor form and benchmark configuration are generated from it.

    Args:
        cls: a class made by :func:`settings_class`.

    Returns:
        The JSON schema as pydantic writes it.

    Example:
        >>> from t2ictl.settings.windows import Window
        >>> sorted(describe(Window)["properties"])
        ['by', 'start', 'stop']
    """
    from pydantic import TypeAdapter

    return TypeAdapter(cls).json_schema()
