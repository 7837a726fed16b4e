"""What made an image is in the image: settings with versions, in a PNG or as JSON, and read back.

Settings are one JSON object. In a PNG they are the text of an iTXt chunk with the keyword "t2ictl". Both files are
written beside their destination first and then moved into place: a crash leaves the old file as it was.

What is read comes from strangers: it is parsed as strict JSON, never evaluated, and bounded in size.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import secrets
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, PngImagePlugin

from t2ictl.errors import BadSetting, shown
from t2ictl.settings.legacy import upgraded
from t2ictl.settings.png_text import read_png_text

SCHEMA_VERSION = 3
"""Version of the layout of settings; raised when a reader of the old layout would misunderstand the new one."""
KEYWORD = "t2ictl"
"""Keyword of the PNG text chunk."""
MAX_BYTES = 1 << 20
"""Largest settings that are written or read, in bytes of UTF-8: Pillow's own limit for a compressed text chunk."""
KNOWN_KEYS = frozenset(
    {"schema", "request", "controls", "arguments", "story", "places", "pipeline", "parser", "versions", "image"}
)
"""Top-level keys that this version gives a meaning to; others are kept and handed back as they are."""
PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "pillow", "textblob", "spacy")
"""Packages whose versions can change an image."""
LONGEST_INT = 20  # digits with the sign: seeds have 64 bits
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of everything that can change an image.

    Args:
        packages: names of distributions; those that are not installed are left out.

    Returns:
        Name and version of this library, of Python and of each package.

    Example:
        >>> sorted(versions())[:2]
        ['diffusers', 'numpy']
    """
    from t2ictl._version import __version__

    found = {"t2ictl": __version__, "python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def stamped(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings that say in which layout and by which versions they were written.

    Args:
        settings: any settings; not changed. A "schema" or "versions" that they have already is kept.

    Returns:
        A new dict with both keys.

    Example:
        >>> stamped({"request": {"prompt": "a cat"}})["schema"]
        3
    """
    return {"schema": SCHEMA_VERSION, "versions": versions(), **settings}


def write_png(image: Image.Image, path: str | Path, settings: dict[str, Any], *, overwrite: bool = True) -> Path:
    """Write an image with the settings that made it, completely or not at all.

    Args:
        image: in a mode that PNG has; not changed.
        path: a file name that ends in .png, in a folder that exists.
        settings: JSON values only, at most 1 MiB; stamped with schema and versions where they have none.
        overwrite: whether a file that exists may be replaced.

    Returns:
        The path.

    Raises:
        BadSetting: the settings are not strict JSON or too large, or the path cannot be written to.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "cat.png"
        >>> read_settings(write_png(Image.new("RGB", (8, 8)), path, {"request": {"prompt": "a cat"}}))["request"]
        {'prompt': 'a cat'}
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise BadSetting(f"The image path {str(path)!r} does not end in .png.", "Only PNG carries the settings.")
    text = _json_text(stamped(settings), "settings")
    size = len(text.encode("utf-8"))
    if size > MAX_BYTES:
        raise BadSetting(f"The settings have {size} bytes, more than {MAX_BYTES}.", "Keep maps and images out of them.")
    chunk = PngImagePlugin.PngInfo()
    chunk.add_itxt(KEYWORD, text)
    _replace(path, lambda handle: image.save(handle, format="PNG", pnginfo=chunk), overwrite)
    return path


def write_json(path: str | Path, data: Any, *, overwrite: bool = True) -> Path:
    """Write data as strict, indented UTF-8 JSON, completely or not at all.

    Args:
        path: a file name in a folder that exists.
        data: JSON values only; tuples become lists. Settings that are to be read again: `stamped(settings)`.
        overwrite: whether a file that exists may be replaced.

    Returns:
        The path.

    Raises:
        BadSetting: the data are not strict JSON, or the path cannot be written to.

    Example:
        >>> import tempfile
        >>> write_json(Path(tempfile.mkdtemp()) / "a.json", {"seed": 7}).read_text(encoding="utf-8")
        '{\\n  "seed": 7\\n}\\n'
    """
    path = Path(path)
    content = (_json_text(data, "data", indent=2) + "\n").encode("utf-8")
    _replace(path, lambda handle: handle.write(content), overwrite)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write a text as UTF-8, completely or not at all.

    Args:
        path: a file name in a folder that exists.
        text: the text.

    Returns:
        The path.

    Raises:
        BadSetting: the path cannot be written to.
    """
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file, completely or not at all.

    Args:
        path: a file name in a folder that exists.
        content: all of it.

    Returns:
        The path.

    Raises:
        BadSetting: the path cannot be written to.

    Example:
        >>> write_bytes("a.txt", b"new").read_bytes()
        b'new'
    """
    path = Path(path)
    _replace(path, lambda handle: handle.write(content), True)
    return path


def read_settings(path: str | Path | BinaryIO) -> dict[str, Any]:
    """Return the settings in a PNG or a JSON file.

    What a file is, is decided by its content and not by its name. The image is not decoded unless its settings
    come after it. Settings of a newer schema are returned with a warning that names what is unknown here.

    Args:
        path: a PNG that carries settings, or a JSON file of one object; without "schema" it counts as the first one.
            Or such a file, open for reading bytes; messages call it by its ``name``.

    Returns:
        The settings, with every key that was written; those of an older schema under the names of today.

    Raises:
        BadSetting: there is no such file, it is neither PNG nor JSON or damaged, or it holds no settings.

    Example:
        >>> import tempfile
        >>> path = write_json(Path(tempfile.mkdtemp()) / "a.json", {"schema": 1, "request": {"prompt": "a cat"}})
        >>> read_settings(path)["request"]
        {'prompt': 'a cat'}
    """
    if not isinstance(path, (str, Path)):
        return _settings_in(path, str(getattr(path, "name", "given")))
    path = Path(path)
    try:
        if not path.is_file():
            raise BadSetting(f"There is no file {str(path)!r}.", "Give a PNG written by t2ictl, or a JSON file.")
        with path.open("rb") as handle:
            return _settings_in(handle, str(path))
    except OSError as error:
        raise BadSetting(
            f"The file {str(path)!r:.200} cannot be read: {error.strerror}.", "Give a PNG or JSON file of t2ictl."
        ) from None


def _settings_in(handle: BinaryIO, name: str) -> dict[str, Any]:
    is_png = handle.read(len(_PNG_SIGNATURE)) == _PNG_SIGNATURE
    handle.seek(0)
    settings = _parsed(_png_text(handle, name) if is_png else _file_text(handle, name), name)
    if not is_png and not settings.keys() & KNOWN_KEYS:  # in a PNG, the keyword says that the object is ours
        raise BadSetting(f"The file {name!r} holds no t2ictl settings.", "Its JSON is that of another program.")
    _check_schema(settings, name)
    return upgraded(settings)


def _png_text(handle: BinaryIO, name: str) -> str:
    """Return the settings chunk of a PNG, wherever in the file it is."""
    try:
        text = read_png_text(handle, KEYWORD, MAX_BYTES)
    except ValueError as error:
        raise BadSetting(f"The PNG {name!r} cannot be read: {error}.", "It may be damaged, or not ours.") from error
    if text is None:
        raise BadSetting(
            f"The PNG {name!r} holds no t2ictl settings.",
            "Another program made or rewrote it; give the original, or a JSON file.",
        )
    return text


def _file_text(handle: BinaryIO, name: str) -> str:
    """Return the text of a file that is not a PNG."""
    content = handle.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise BadSetting(
            f"The file {name!r} is no PNG, and too large for settings (over {MAX_BYTES} bytes).",
            "Give a PNG written by t2ictl, or a JSON file.",
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadSetting(f"The file {name!r} is neither a PNG nor JSON.", "Give one of the two.") from None


def _parsed(text: str, name: str) -> dict[str, Any]:
    """Return the JSON object in a text that came out of a file."""
    try:
        settings = json.loads(text, parse_constant=_refuse_constant, parse_int=_bounded_int, parse_float=_finite_float)
        json.dumps(settings, ensure_ascii=False).encode("utf-8")  # half a character can be escaped, and is no text
    except (ValueError, RecursionError) as error:
        raise BadSetting(
            f"The settings in {name!r} are not strict JSON: {error}.", "Give a PNG or JSON file of t2ictl."
        ) from None
    if not isinstance(settings, dict):
        raise BadSetting(f"The file {name!r} holds no t2ictl settings.", "Settings are a JSON object.")
    return settings


def _bounded_int(text: str) -> int:
    if len(text) > LONGEST_INT:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _check_schema(settings: dict[str, Any], name: str) -> None:
    """Warn about settings of a newer schema; refuse what is no schema."""
    schema = settings.get("schema", 1)
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise BadSetting(f"The settings in {name!r} have schema {shown(schema)}.", "A schema is a whole number from 1.")
    if schema > SCHEMA_VERSION:
        unknown = ", ".join(sorted(settings.keys() - KNOWN_KEYS)) or "no key by name"
        warnings.warn(
            f"The settings in {name!r} have schema {schema}, newer than {SCHEMA_VERSION}, the newest known here. "
            f"Unknown: {unknown}. Update t2ictl to use all of them.",
            stacklevel=4,
        )


def require_json(data: Any, name: str) -> None:
    """Refuse what strict JSON does not have.

    Args:
        data: any value.
        name: what it is, for messages.

    Raises:
        BadSetting: with the place of the first value that cannot be written.
    """
    try:
        _require_json(data, name)
    except RecursionError:
        raise BadSetting(f"{name} is nested too deeply.", "A value may contain itself.") from None


def _json_text(data: Any, name: str, indent: int | None = None) -> str:
    """Return strict JSON that can be read back, or say which value cannot be written."""
    require_json(data, name)
    return json.dumps(data, ensure_ascii=False, allow_nan=False, indent=indent)


def _require_json(value: Any, place: str) -> None:
    """Raise for the first value that JSON does not have, with its place, as in settings.controls[0].strength."""
    if value is None or isinstance(value, (bool, int)):
        return
    if isinstance(value, str):
        if not _is_unicode(value):
            raise BadSetting(f"{place} is not valid Unicode: {value!r}.", "Remove the lone surrogate.")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise BadSetting(f"{place} is {value!r}.", "JSON has finite numbers only; use null for none.")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _require_json(item, f"{place}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or not _is_unicode(key):
                raise BadSetting(f"{place} has the key {shown(key)}.", "Keys are text in JSON.")
            _require_json(item, f"{place}.{key}")
    else:
        raise BadSetting(f"{place} is a {type(value).__name__}.", "Use text, numbers, true, false, null, lists, dicts.")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _replace(path: Path, write: Callable[[BinaryIO], object], overwrite: bool) -> None:
    """Write a file beside `path` and move it there when it is complete and on the disk."""
    try:
        if path.is_dir() or not path.parent.is_dir():
            raise BadSetting(f"{str(path)!r} is a folder, or is in one that does not exist.", "Make the folder first.")
        if path.exists() and not overwrite:
            raise BadSetting(f"The file {str(path)!r} exists.", "Allow overwriting, or choose another name.")
    except OSError as error:  # of the name
        raise BadSetting(f"{str(path)!r:.200} cannot be written: {error.strerror}.", "Choose another name.") from None
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as handle:
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(part, path)
    except BaseException:  # also a keyboard interrupt must leave no part behind
        part.unlink(missing_ok=True)
        raise
