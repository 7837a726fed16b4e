"""The frozen instrument: which world, judge and weights a figure was measured with.

``python -m t2ictl.shapes.instrument`` prints the identity that belongs on every table. The file
``instrument.json`` keeps the hashes of every released version; ``--record`` writes those of a new one.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import io
import json
import tokenize
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from t2ictl.errors import BadSetting
from t2ictl.shapes import model_path

INSTRUMENT_VERSION = "2"

#: What an asked-for image is, and how it is judged; :func:`t2ictl.shapes.model_path` holds the weights.
WORLD_FILES = ("world.py", "sampling.py", "draw.py", "captions.py", "prompts.py")
JUDGE_FILES = ("seeing.py", "silhouettes.py", "verdict.py")
RECORD = Path(__file__).with_name("instrument.json")


def _digest(parts: Iterable[tuple[str, bytes]]) -> str:
    """Hash names and contents, each with its length so that no two lists of parts look the same."""
    total = hashlib.sha256()
    for name, content in parts:
        for piece in (name.encode(), content):
            total.update(len(piece).to_bytes(8, "big") + piece)
    return total.hexdigest()


def _sources(names: Iterable[str]) -> Iterable[tuple[str, bytes]]:
    """Read source files of this package."""
    return ((name, _code(Path(__file__).with_name(name).read_text(encoding="utf-8"))) for name in names)


def _code(text: str) -> bytes:
    """The code of a file without comments, docstrings and line ends: what words explain it does not change it."""
    tree = ast.parse(text)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    blocks = [node.body[0] for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)]
    docstrings = {(block.lineno, block.col_offset) for block in blocks}
    shown = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL) or token.start in docstrings:
            continue
        shown.append("\n" if token.type == tokenize.NEWLINE else token.string)
    return "".join(shown).encode()


def weights_digest(folder: Path) -> str:
    """Hash a diffusers folder.

    Args:
        folder: names and bytes of all files in it count, hidden ones apart.

    Returns:
        The SHA-256 in hexadecimal.

    Example:
        >>> len(weights_digest(model_path()))
        64
    """
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    visible = sorted(name for name in paths if not any(part.startswith(".") for part in name.split("/")))
    return _digest((name, paths[name].read_bytes()) for name in visible)


@functools.cache
def instrument_hashes() -> dict[str, str]:
    """Hash what is installed.

    Returns:
        SHA-256 of ``"world"``, ``"judge"`` and ``"weights"``, in hexadecimal.

    Example:
        >>> list(instrument_hashes())
        ['world', 'judge', 'weights']
    """
    entry: dict[str, Any] = recorded().get(INSTRUMENT_VERSION, {})
    named = {"weights": weights_digest(model_path())}
    for part, files in (("world", WORLD_FILES), ("judge", JUDGE_FILES)):
        digest = _digest(_sources(files))
        # Version 2 was named by the text of its files, and its tables keep that name as long as the code is the same.
        named[part] = entry[part] if entry.get("code", {}).get(part) == digest else digest
    return {part: named[part] for part in ("world", "judge", "weights")}


def instrument_id() -> str:
    """Name the instrument in one line, for tables.

    Returns:
        Version and the first eight digits of every hash.

    Example:
        >>> instrument_id()
        'shapes 2 (world ..., judge ..., weights ...)'
    """
    parts = ", ".join(f"{part} {digest[:8]}" for part, digest in instrument_hashes().items())
    return f"shapes {INSTRUMENT_VERSION} ({parts})"


def recorded(path: Path = RECORD) -> dict[str, dict[str, Any]]:
    """Read the hashes of all released versions.

    Args:
        path: of the record.

    Returns:
        Version to hashes; empty if nothing was ever recorded.

    Example:
        >>> recorded(Path("no-such-record.json"))
        {}
    """
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def check_instrument(path: Path = RECORD) -> None:
    """Compare what is installed with the record of its version.

    Args:
        path: of the record.

    Raises:
        BadSetting: the version has no entry, or another one.

    Example:
        >>> check_instrument(Path("no-such-record.json"))
        Traceback (most recent call last):
            ...
        t2ictl.errors.BadSetting: Version 2 of the instrument is not recorded. ...
    """
    present, entry = instrument_hashes(), recorded(path).get(INSTRUMENT_VERSION)
    if entry is None:
        raise BadSetting(
            f"Version {INSTRUMENT_VERSION} of the instrument is not recorded.",
            "If it is final, run python -m t2ictl.shapes.instrument --record and commit instrument.json.",
        )
    changed = [part for part, digest in present.items() if entry.get(part) != digest]
    if changed:
        raise BadSetting(
            f"The {' and '.join(changed)} of the instrument changed after version {INSTRUMENT_VERSION} was frozen, "
            "so figures of before and after cannot be compared.",
            "Take the change back; or raise INSTRUMENT_VERSION in t2ictl/shapes/instrument.py, run "
            "python -m t2ictl.shapes.instrument --record, and measure every table anew.",
        )


def record(path: Path = RECORD) -> None:
    """Write the entry of the present version; entries are never changed.

    Args:
        path: of the record.

    Raises:
        BadSetting: the version has an entry of other hashes.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "instrument.json"
        >>> record(path)
        >>> check_instrument(path)
    """
    entries = recorded(path)
    if INSTRUMENT_VERSION in entries:
        check_instrument(path)
        return
    entries[INSTRUMENT_VERSION] = instrument_hashes()
    path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Print the identity, and say whether it is the recorded one."""
    parser = argparse.ArgumentParser(prog="python -m t2ictl.shapes.instrument", description=__doc__)
    parser.add_argument("--record", action="store_true", help="freeze: write the hashes of this version")
    options = parser.parse_args(arguments)
    print(instrument_id())
    try:
        record() if options.record else check_instrument()
    except BadSetting as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
