"""The frozen instrument: which world, judge and weights a figure was measured with.

``python -m t2ictl.shapes.instrument`` prints the identity that belongs on every table; ``--model`` that of another
embedded model, which has world and judge in common with ``shapes``, and weights and versions of its own. The file
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
from t2ictl.shapes.embedded import DEFAULT, MODELS

INSTRUMENT_VERSION = "2"
#: The version of each embedded model. A change of world or judge raises all of them.
VERSIONS = {DEFAULT: INSTRUMENT_VERSION, "shapes-clip": "1", "shapes-dit": "1"}

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
def _weights(folder: Path) -> str:
    return weights_digest(folder)


@functools.cache
def _code_hashes() -> dict[str, str]:
    """Hash world and judge, which all models have in common."""
    entry, named = recorded().get(INSTRUMENT_VERSION, {}), {}
    for part, files in (("world", WORLD_FILES), ("judge", JUDGE_FILES)):
        digest = _digest(_sources(files))
        # Version 2 was named by the text of its files, and its tables keep that name as long as the code is the same.
        named[part] = entry[part] if entry.get("code", {}).get(part) == digest else digest
    return named


def instrument_hashes(model: str | Path = DEFAULT) -> dict[str, str]:
    """Hash what is installed.

    Args:
        model: name of an embedded model, or a diffusers folder.

    Returns:
        SHA-256 of ``"world"``, ``"judge"`` and ``"weights"``, in hexadecimal.

    Raises:
        BadSetting: if there is no embedded model of that name, or its weights are not installed.

    Example:
        >>> list(instrument_hashes())
        ['world', 'judge', 'weights']
    """
    return {**_code_hashes(), "weights": _weights(model if isinstance(model, Path) else model_path(model))}


def instrument_id(model: str | Path | None = DEFAULT) -> str:
    """Name the instrument in one line, for tables.

    Args:
        model: name of an embedded model; a diffusers folder, whose weights have no version; or None for world and judge
            alone, where the model is somebody else's.

    Returns:
        Version and the first eight digits of every hash.

    Raises:
        BadSetting: if there is no embedded model of that name, or its weights are not installed.

    Example:
        >>> instrument_id()
        'shapes 2 (world ..., judge ..., weights ...)'
        >>> instrument_id(None)
        'shapes 2 (world ..., judge ...)'
    """
    hashes = _code_hashes() if model is None else instrument_hashes(model)
    parts = ", ".join(f"{part} {digest[:8]}" for part, digest in hashes.items())
    if isinstance(model, Path):
        return f"{model.resolve().name}, no version ({parts})"
    return f"{model or DEFAULT} {VERSIONS[model or DEFAULT]} ({parts})"


def _key(model: str) -> str:
    """The name of a model's present version in the record; those of ``shapes`` have no name before them."""
    return VERSIONS[model] if model == DEFAULT else f"{model} {VERSIONS[model]}"


def recorded(path: Path = RECORD) -> dict[str, dict[str, Any]]:
    """Read the hashes of all released versions.

    Args:
        path: of the record.

    Returns:
        Version to hashes; empty if nothing was ever recorded. A version of another model than ``shapes`` has the
        model's name before it.

    Example:
        >>> recorded(Path("no-such-record.json"))
        {}
    """
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def check_instrument(path: Path = RECORD, model: str = DEFAULT) -> None:
    """Compare what is installed with the record of its version.

    Args:
        path: of the record.
        model: name of an embedded model.

    Raises:
        BadSetting: the version has no entry, or another one; or the model is not there.

    Example:
        >>> check_instrument(Path("no-such-record.json"))
        Traceback (most recent call last):
            ...
        t2ictl.errors.BadSetting: Version 2 of the instrument is not recorded. ...
    """
    present, entry = instrument_hashes(model), recorded(path).get(_key(model))
    whose, option = ("", "") if model == DEFAULT else (f" of {model}", f" --model {model}")
    if entry is None:
        raise BadSetting(
            f"Version {VERSIONS[model]} of the instrument{whose} is not recorded.",
            f"If it is final, run python -m t2ictl.shapes.instrument{option} --record and commit instrument.json.",
        )
    changed = [part for part, digest in present.items() if entry.get(part) != digest]
    if changed:
        place = "INSTRUMENT_VERSION" if model == DEFAULT else "its entry in VERSIONS"
        raise BadSetting(
            f"The {' and '.join(changed)} of the instrument{whose} changed after version {VERSIONS[model]} was frozen, "
            "so figures of before and after cannot be compared.",
            f"Take the change back; or raise {place} in t2ictl/shapes/instrument.py, run "
            f"python -m t2ictl.shapes.instrument{option} --record, and measure every table anew.",
        )


def record(path: Path = RECORD, model: str = DEFAULT) -> None:
    """Write the entry of the present version; entries are never changed.

    Args:
        path: of the record.
        model: name of an embedded model.

    Raises:
        BadSetting: the version has an entry of other hashes, or the model is not there.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "instrument.json"
        >>> record(path)
        >>> check_instrument(path)
    """
    entries = recorded(path)
    if _key(model) in entries:
        check_instrument(path, model)
        return
    entries[_key(model)] = instrument_hashes(model)
    path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Print the identity of a model, and say whether it is the recorded one."""
    parser = argparse.ArgumentParser(prog="python -m t2ictl.shapes.instrument", description=__doc__)
    parser.add_argument("--model", default=DEFAULT, help=f"one of {', '.join(MODELS)}")
    parser.add_argument("--record", action="store_true", help="freeze: write the hashes of this version")
    options = parser.parse_args(arguments)
    try:
        print(instrument_id(options.model))
        record(model=options.model) if options.record else check_instrument(model=options.model)
    except BadSetting as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
