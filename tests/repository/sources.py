"""Reading the repository's own source files: what the rules in this folder are checked on."""

from __future__ import annotations

import ast
import functools
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINKED = ("processors", "losses", "app", "benchmarks")  # top-level folders that are installed inside t2ictl
MADE_BY_TOOLS = {".git", ".venv", "build", "dist", "demo", ".hypothesis"}  # in the root only


@dataclass(frozen=True)
class Source:
    """One Python file of ours: its path from the root and the name it is imported by."""

    path: str
    module: str

    @property
    def text(self) -> str:
        """The file's text."""
        return (ROOT / self.path).read_text(encoding="utf-8")

    @functools.cached_property
    def tree(self) -> ast.Module:
        """The parsed file."""
        return ast.parse(self.text, self.path)

    def imports(self) -> Iterator[str]:
        """Full names of everything imported, wherever in the file: ``from a.b import c`` gives ``a.b.c``."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node)
                yield from (f"{base}.{alias.name}" for alias in node.names)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        is_package = self.path.endswith("__init__.py")
        parents = self.module.split(".")
        parents = parents[: len(parents) - node.level + is_package]
        return ".".join([*parents, node.module] if node.module else parents)


def _module_name(path: Path) -> str:
    parts = list(path.with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(["t2ictl", *parts] if parts[0] in LINKED else parts)


@functools.cache
def sources(*folders: str) -> tuple[Source, ...]:
    """Our Python files under ``folders`` of the root; links are not followed, so each file comes once."""
    found = []
    for folder in folders or ("t2ictl", *LINKED, "tests"):
        for path in sorted(_files(ROOT / folder)):
            if path.suffix == ".py":
                inside = path.relative_to(ROOT)
                found.append(Source(inside.as_posix(), _module_name(inside)))
    return tuple(found)


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        made = path.name.endswith(("_cache", ".egg-info", "__pycache__"))
        if made or path.is_symlink() or (folder == ROOT and path.name in MADE_BY_TOOLS):
            continue
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def repository_files() -> list[Path]:
    """Every file of the checkout but those that tools left behind."""
    return sorted(_files(ROOT))


@functools.cache
def installed_modules() -> tuple[str, ...]:
    """Names of all modules as an importer finds them, without ``__main__`` modules: importing those runs them."""
    package = import_module("t2ictl")

    def fail(name: str) -> None:
        raise ImportError(f"{name} cannot be imported")

    found = [info.name for info in pkgutil.walk_packages(package.__path__, "t2ictl.", onerror=fail)]
    return ("t2ictl", *(name for name in found if not name.endswith("__main__")))
