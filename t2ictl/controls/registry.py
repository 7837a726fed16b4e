"""The registry: controls by name, found in this library and in installed packages."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from t2ictl.errors import BadSetting, ControlConflict, shown
from t2ictl.settings.fields import given_fields
from t2ictl.settings.legacy import upgraded_control
from t2ictl.settings.trust import forbid_paths

if TYPE_CHECKING:
    from t2ictl.controls.base import Control
    from t2ictl.families.base import Offer

__all__ = [
    "broken_controls",
    "control_from_dict",
    "control_to_dict",
    "get_control",
    "list_controls",
    "register_control",
]


C = TypeVar("C", bound="type[Control]")
#: Where methods live.
METHODS = "t2ictl.processors"

_REGISTRY: dict[str, type[Control]] = {}
_BROKEN: dict[str, str] = {}


def register_control(
    name: str,
    *,
    paper: str,
    needs: Iterable[Offer] | None = None,
    published: Mapping[str, Any] | None = None,
) -> Callable[[C], C]:
    """Register a control under a name, for the command line, the editor and the benchmarks.

    Args:
        name: lower case, words joined by underscores.
        paper: authors, title, year, arXiv id.
        needs: what a pipeline family must offer: ``"maps"`` of words, ``"self_maps"``, ``"values"``, ``"rows"``,
            ``"encoders"``, ``"features"``; None: what the class above it needs.
        published: fields that the published form sets otherwise than the defaults, for :meth:`Control.published`.

    Returns:
        The class decorator.

    Raises:
        ControlConflict: if another control already has the name.
    """

    def register(cls: C) -> C:
        """File the class, unless another one has the name."""
        if not name.isidentifier() or name != name.lower():
            raise BadSetting(f"{name!r} cannot be a control's name.", "Use lower case and underscores.")
        known = _REGISTRY.get(name)
        if known is not None and not _is_same_class(known, cls):
            raise ControlConflict(
                f"Both {known.__module__}.{known.__qualname__} and {cls.__module__}.{cls.__qualname__} "
                f"want the name {name!r}.",
                "Rename one.",
            )
        cls.name, cls.paper = name, paper
        if needs is not None:
            cls.needs = frozenset(needs)
        cls.published_settings = MappingProxyType(dict(published or {}))
        # A cell that is run again, or a module that is reloaded, brings the newer definition.
        if known is None or known.__module__ == cls.__module__:
            _REGISTRY[name] = cls
        return cls

    return register


def _is_same_class(known: type, cls: type) -> bool:
    """Return whether two classes are one: defined again, or found under a second name."""
    if known.__qualname__ != cls.__qualname__:
        return False
    homes = [getattr(sys.modules.get(each.__module__), "__file__", None) for each in (known, cls)]
    here, there = (home and os.path.realpath(home) for home in homes)
    return known.__module__ == cls.__module__ or (here is not None and here == there)


def _load(module: str) -> None:
    """Import a module and all that it names: packages load their classes only when they are asked for."""
    found = importlib.import_module(module)
    for name in getattr(found, "__all__", ()):
        getattr(found, name)


def _discover() -> None:
    """Import every module of t2ictl.processors and every installed entry point, once each."""
    home = importlib.import_module(METHODS)  # by name: methods stand above the core

    names = [f"{home.__name__}.{module.name}" for module in pkgutil.iter_modules(home.__path__)]
    loaders: list[tuple[str, Callable[[], Any]]] = [(name, functools.partial(_load, name)) for name in names]
    loaders += [(point.value, point.load) for point in entry_points(group="t2ictl.controls")]
    for name, load in loaders:
        try:
            load()
            _BROKEN.pop(name, None)
        except Exception as error:  # one broken file must not take the others down, nor be hidden
            _BROKEN[name] = f"{type(error).__name__}: {error}"


def list_controls() -> dict[str, type[Control]]:
    """List all controls: those of this library and those of installed packages.

    Returns:
        Class by name, in alphabetical order.

    Example:
        >>> "attention_segregation" in list_controls()
        True
    """
    _discover()
    return dict(sorted(_REGISTRY.items()))


def broken_controls() -> dict[str, str]:
    """List control modules that could not be imported, each with its error.

    Returns:
        Error by module name; empty if all is well.
    """
    _discover()
    return dict(_BROKEN)


def get_control(name: str) -> type[Control]:
    """Find a control by name.

    Args:
        name: as in :func:`list_controls`.

    Returns:
        The class.

    Raises:
        BadSetting: if there is no such control; the message lists what there is, and what could not be imported.
    """
    known = list_controls()
    if name not in known:
        broken = "".join(f" ({module} failed to import: {error})" for module, error in _BROKEN.items())
        raise BadSetting(f"There is no control {shown(name)}.{broken}", f"Known: {', '.join(known)}.")
    return known[name]


def control_to_dict(control: Control) -> dict[str, Any]:
    """Write a control as plain JSON data.

    Args:
        control: a registered control.

    Returns:
        ``{"control": name, field: value, ...}``; where a preset is to fill in fields, they are listed under
        ``"left_open"``, fields of fields behind a dot.

    Example:
        >>> from t2ictl.processors import AttentionSegregation
        >>> control_from_dict(control_to_dict(AttentionSegregation(strength=0.5))).strength
        0.5
    """
    from pydantic import TypeAdapter

    data = TypeAdapter(type(control)).dump_python(control, mode="json")
    left_open = [] if control.preset == "none" else _left_open(data, given_fields(control) | {"preset"})
    return {"control": control.name, **data, **({"left_open": left_open} if left_open else {})}


def control_from_dict(data: Mapping[str, Any], *, files: bool = True) -> Control:
    """Read a control back from plain JSON data.

    Args:
        data: as :func:`control_to_dict` writes it.
        files: whether masks and images may be files that the data name; False for data from strangers.

    Returns:
        The control.

    Raises:
        BadSetting: if the control or one of its fields is unknown, a value is out of range, or a file is named that
            may not be.
    """
    values = upgraded_control(data)
    cls = get_control(str(values.pop("control", "")))
    left_open = values.pop("left_open", ())
    if not isinstance(left_open, list | tuple):
        raise BadSetting(f"left_open cannot be {shown(left_open)}.", "List names of fields.")
    values = _without(values, frozenset(map(str, left_open)))
    unknown = sorted(set(values) - {each.name for each in fields(cls)})
    if unknown:
        raise BadSetting(f"{cls.__name__} has no field {unknown}.", "Was this written by a newer version?")
    with contextlib.nullcontext() if files else forbid_paths():
        return cls(**values)


def _left_open(data: Mapping[str, Any], given: frozenset[str], under: str = "") -> list[str]:
    """Fields that were not chosen, whole or some fields of them."""
    found: list[str] = []
    for name, value in data.items():
        path = under + name
        if path not in given:
            is_chosen = any(each.startswith(f"{path}.") for each in given)
            found += _left_open(value, given, f"{path}.") if is_chosen else [path]
    return sorted(found)


def _without(data: Mapping[str, Any], paths: frozenset[str], under: str = "") -> dict[str, Any]:
    """The same without some fields; what has none left is left out."""
    kept: dict[str, Any] = {}
    for name, value in data.items():
        if under + name in paths:
            continue
        inner = _without(value, paths, f"{under}{name}.") if isinstance(value, Mapping) else value
        # Only of mappings is it asked whether they are empty: an array has no answer to that.
        if not isinstance(value, Mapping) or inner or not value:
            kept[name] = inner
    return kept
