"""YAML from anywhere: read as plain data, bounded in size however its aliases are nested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from t2ictl.errors import BadSetting
from t2ictl.settings.files import MAX_BYTES

__all__ = ["read_yaml"]

LARGEST = 100_000
"""Values that a file may stand for, each alias counted as what it repeats. Plans of ours have some hundred."""


def read_yaml(path: Path, what: str) -> Any:
    """Read a YAML file.

    Args:
        path: the file.
        what: what it is, for messages, as in ``"plan"``.

    Returns:
        Plain data.

    Raises:
        BadSetting: if it is not there, not YAML, or too large.

    Example:
        >>> _ = Path("a.yaml").write_text("arms: [plain]")
        >>> read_yaml(Path("a.yaml"), "plan")
        {'arms': ['plain']}
    """
    try:
        with path.open("rb") as handle:
            content = handle.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise BadSetting(f"The {what} {str(path)!r} has over {MAX_BYTES} bytes.", "Name a YAML file.")
        return _data(content.decode("utf-8"), f"The {what} {str(path)!r}")
    except BadSetting:
        raise
    except (OSError, ValueError) as error:
        raise BadSetting(f"The {what} {str(path)!r} cannot be read: {error}.", "Name a YAML file.") from None


def _data(text: str, name: str) -> Any:
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is not None and _count(node, {}) > LARGEST:
                raise BadSetting(f"{name} repeats its values too often.", "Write them out, without nested aliases.")
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except BadSetting:
        raise
    except RecursionError:
        raise BadSetting(f"{name} is nested too deeply.", "A value may contain itself.") from None
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as error:  # of numbers and dates, too
        raise BadSetting(f"{name} is not YAML: {' '.join(str(error).split())[:300]}.", "Mend that line.") from None


def _count(node: Any, known: dict[int, int]) -> int:
    """Number of values that a node stands for; each node is counted once, however often it is named."""
    if id(node) not in known:
        known[id(node)] = LARGEST + 1  # one that contains itself has no end
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [each for pair in inner for each in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_count(each, known) for each in parts)
    return known[id(node)]
