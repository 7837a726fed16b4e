"""Who may import whom: the dependency rule, checked on every import statement, also those inside functions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.repository.sources import LINKED, Source, sources

# An entry point that shows particular methods has to name them; it is no part of the core that others import.
APPLICATIONS = {"t2ictl/demo.py"}
# Discovery lists the modules of the package, or reads its tables, so it imports the package; no method in it.
DISCOVERY = {("t2ictl/controls.py", "t2ictl.processors"), ("t2ictl/contributions.py", "t2ictl.processors")}
# A smoothing kernel of that paper's public code, not the control.
KERNELS = {("t2ictl/analysis.py", "attend_and_excite"), ("t2ictl/concepts.py", "attend_and_excite")}
EVERYTHING = sources()
CORE = tuple(source for source in sources("t2ictl") if source.path not in APPLICATIONS)


def _is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _ours(source: Source) -> Iterator[str]:
    return (name for name in source.imports() if _is_below(name, "t2ictl"))


def _by_path(source: Source) -> str:
    return source.path


@pytest.mark.parametrize("source", EVERYTHING, ids=_by_path)
def test_the_four_folders_are_imported_by_their_full_name(source: Source) -> None:
    bare = [name for name in source.imports() if name.split(".")[0] in LINKED]
    assert not bare, f"{source.path} imports {bare}; write t2ictl.{bare[0] if bare else ''}"


@pytest.mark.parametrize("source", sources("losses"), ids=_by_path)
def test_losses_know_nothing_of_ours_but_errors(source: Source) -> None:
    allowed = ("t2ictl.errors", "t2ictl.losses")
    assert [name for name in _ours(source) if not any(_is_below(name, package) for package in allowed)] == []


@pytest.mark.parametrize("source", CORE, ids=_by_path)
def test_the_core_imports_no_method_no_app_and_no_benchmark(source: Source) -> None:
    above = ("t2ictl.processors", "t2ictl.app", "t2ictl.benchmarks")
    found = [name for name in _ours(source) if any(_is_below(name, package) for package in above)]
    assert [name for name in found if (source.path, name) not in DISCOVERY] == []


@pytest.mark.parametrize("source", CORE, ids=_by_path)
def test_the_core_names_no_method(source: Source) -> None:
    found = _method_words() & set(_words(source))
    assert {word for word in found if (source.path, word) not in KERNELS} == set()


def _method_words() -> set[str]:
    """File names of the methods and the class names that go with them: token_merging, TokenMerging."""
    paths = [source.path for source in sources("processors") if "/_" not in source.path]
    methods = [path.split("/")[-1].removesuffix(".py") for path in paths]
    return {*methods, *("".join(part.capitalize() for part in name.split("_")) for name in methods)}


def _words(source: Source) -> Iterator[str]:
    """Names in the code, and strings without a space: keys. Help texts and messages may show a method as an example."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            yield from re.findall(r"\w+", node.value)


@pytest.mark.parametrize("source", sources("processors"), ids=_by_path)
def test_a_method_imports_core_and_losses_only(source: Source) -> None:
    for name in _ours(source):
        assert not _is_below(name, "t2ictl.app") and not _is_below(name, "t2ictl.benchmarks"), name
        is_private = "/_" in source.path  # the package itself, a part, a verb or a command of a method
        if _is_below(name, "t2ictl.processors") and not is_private:
            # What two methods share belongs in the core, or in a private module here.
            assert name.split(".")[2:3] and name.split(".")[2].startswith("_"), f"{source.path} imports {name}"


def _uses_public_verbs_only(source: Source, own: str, also: tuple[str, ...] = ()) -> None:
    """``import t2ictl``, ``from t2ictl import verb``, controls, errors, and the folder's own modules."""
    modules = {other.module for other in EVERYTHING}
    for name in _ours(source):
        parents = {name, name.rpartition(".")[0]}
        inner = any(parent in modules and parent != "t2ictl" for parent in parents)
        allowed = ("t2ictl.processors", "t2ictl.errors", own, *also)
        assert not inner or any(_is_below(name, package) for package in allowed), f"{source.path} imports {name}"


@pytest.mark.parametrize("source", sources("app"), ids=_by_path)
def test_the_app_uses_public_verbs(source: Source) -> None:
    _uses_public_verbs_only(source, "t2ictl.app", ("t2ictl.shapes",))  # the embedded model has a folder of its own


@pytest.mark.parametrize("source", sources("benchmarks"), ids=_by_path)
def test_benchmarks_use_public_verbs_and_the_drawn_world(source: Source) -> None:
    # The cost of a part cannot be measured through a verb that runs everything: benchmarks of speed may take parts.
    # A rival method that is there to be compared with is made of the same parts as the method.
    takes_parts = ("t2ictl.benchmarks.speed", "t2ictl.benchmarks.stories.key_gather")
    if not any(_is_below(source.module, each) for each in takes_parts):
        shared = ("shapes", "statistics", "judges", "pages", "phrases")
        _uses_public_verbs_only(source, "t2ictl.benchmarks", tuple(f"t2ictl.{name}" for name in shared))


@pytest.mark.parametrize("source", sources("app"), ids=_by_path)
def test_the_engine_knows_no_streamlit_and_views_know_no_torch(source: Source) -> None:
    packages = {name.split(".")[0] for name in source.imports()}
    if _is_below(source.module, "t2ictl.app.engine"):
        assert "streamlit" not in packages
    if _is_below(source.module, "t2ictl.app.views"):
        assert "torch" not in packages
