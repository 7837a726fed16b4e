"""Forms made of a control's field descriptions: every registered control has one, also those of other packages.

The description of a field is JSON schema. Numbers, choices, switches, words and settings within settings have widgets;
what has none is edited as JSON. Ranges are kept by the widgets and checked again by the control itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import streamlit as st

import t2ictl
from t2ictl import Control

__all__ = ["control_form", "resolved"]

#: Fields that are shown first; all others are folded away.
FIRST = ("strength", "window")


def control_form(cls: type[Control], values: dict[str, Any], key: str) -> list[str]:
    """Show the form of a control, and write what is chosen into its values.

    Args:
        cls: the control.
        values: the fields that are not at their defaults, as JSON data; changed in place.
        key: begins the key of every widget.

    Returns:
        What cannot be read, a sentence each.
    """
    schema = t2ictl.describe(cls)
    defaults = t2ictl.control_to_dict(cls(preset="none"))
    # Presets are buttons of the page: what a field shows is what it is.
    properties = {name: each for name, each in schema["properties"].items() if name != "preset"}
    first = [name for name in FIRST if name in properties]
    problems: list[str] = []
    for name in first:
        _keep(name, properties[name], schema, values, defaults, key, problems)
    with st.expander(f"All settings of {cls.name.replace('_', ' ')}"):
        for name in properties:
            if name not in first:
                _keep(name, properties[name], schema, values, defaults, key, problems)
    return problems


def _keep(
    name: str,
    described: Mapping[str, Any],
    schema: Mapping[str, Any],
    values: dict[str, Any],
    defaults: Mapping[str, Any],
    key: str,
    problems: list[str],
) -> None:
    """Show one field; a value that is the default is left out."""
    try:
        value = _widget(name, described, schema, values.get(name, defaults[name]), f"{key}/{name}")
    except ValueError as error:
        problems.append(f"{name}: {error}")
        return
    if value == defaults[name]:
        values.pop(name, None)
    else:
        values[name] = value


def resolved(described: Mapping[str, Any], schema: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """Follow references, and take the "or nothing" off a description.

    Args:
        described: a field's JSON schema.
        schema: the whole schema, which has the definitions.

    Returns:
        The description, and whether the field may be empty.
    """
    options = [each for each in described.get("anyOf", ()) if each.get("type") != "null"]
    is_optional = len(options) < len(described.get("anyOf", ()))
    if len(options) == 1:
        described = {**{key: value for key, value in described.items() if key != "anyOf"}, **options[0]}
    if "$ref" in described:
        target = schema["$defs"][described["$ref"].removeprefix("#/$defs/")]
        described = {**target, **{key: value for key, value in described.items() if key != "$ref"}}
    return described, is_optional


def _widget(name: str, described: Mapping[str, Any], schema: Mapping[str, Any], value: Any, key: str) -> Any:
    described, is_optional = resolved(described, schema)
    label, help_ = name.replace("_", " "), described.get("description") or None
    kind = described.get("type")
    if "enum" in described:
        return _choice(label, list(described["enum"]), value, key, help_)
    if kind == "boolean":
        _first(key, bool(value))
        return st.toggle(label, key=key, help=help_)
    if kind in ("number", "integer"):
        return _number(label, described, value, key, help_, is_optional=is_optional)
    if kind == "string":
        _first(key, value or "")
        return st.text_input(label, key=key, help=help_) or ("" if not is_optional else None)
    if kind == "object" and "properties" in described:
        return _group(label, described, schema, value, key, is_optional=is_optional)
    if _is_words(described) and (not value or all(isinstance(each, str) for each in value)):
        _first(key, ", ".join(value or ()))
        text = st.text_input(label, key=key, help=help_, placeholder="words, with commas")
        return [part.strip() for part in text.split(",") if part.strip()]
    return _json(label, value, key, help_)


def _first(key: str, value: Any) -> None:
    """What a widget shows when it is new."""
    if key not in st.session_state:
        st.session_state[key] = value


def _choice(label: str, options: list[Any], value: Any, key: str, help_: str | None) -> Any:
    _first(key, value)
    return st.selectbox(label, options, key=key, help=help_, format_func=str)


def _number(
    label: str, described: Mapping[str, Any], value: Any, key: str, help_: str | None, *, is_optional: bool
) -> Any:
    make: Any = int if described["type"] == "integer" else float
    low, high = (None if limit is None else make(limit) for limit in map(described.get, ("minimum", "maximum")))
    _first(key, None if value is None else make(value))
    if make is float and low is not None and high is not None and not is_optional:
        return st.slider(label, low, high, key=key, help=help_, step=(high - low) / 100)
    step, shape = (1, "%d") if make is int else (None, "%g")
    empty: Any = "empty" if is_optional else None
    return st.number_input(label, low, high, key=key, help=help_, step=step, format=shape, placeholder=empty)


def _group(
    label: str, described: Mapping[str, Any], schema: Mapping[str, Any], value: Any, key: str, *, is_optional: bool
) -> Any:
    """Settings within settings; a part of the schedule is one slider with two ends."""
    parts = described["properties"]
    if is_optional:
        _first(f"{key}/on", value is not None)
        if not st.toggle(label, key=f"{key}/on", help=described.get("description")):
            return None
    defaults = {name: part.get("default") for name, part in parts.items()}
    value = {**defaults, **(value or {})}
    ends: dict[str, Any] = {}
    if {"start", "stop"} <= set(parts):
        _first(key, (float(value["start"]), float(value["stop"])))
        both: Any = st.slider(label, 0.0, 1.0, key=key, step=0.01, help=described.get("description"))
        ends = {"start": both[0], "stop": both[1]}
    return ends | {
        name: _widget(f"{label} · {name}", part, schema, value[name], f"{key}/{name}")
        for name, part in parts.items()
        if name not in ends
    }


def _is_words(described: Mapping[str, Any]) -> bool:
    """Whether a list of texts is one of the forms that a field takes."""
    forms = [described, *described.get("anyOf", ())]
    return any(each.get("type") == "array" and each.get("items", {}).get("type") == "string" for each in forms)


def _json(label: str, value: Any, key: str, help_: str | None) -> Any:
    _first(key, json.dumps(value, ensure_ascii=False))
    text = st.text_area(label, key=key, help=f"{help_ or ''} (JSON)", height=68)
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is no JSON ({error})") from None
