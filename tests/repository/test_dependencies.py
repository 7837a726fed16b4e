"""Who may import whom, beyond the floors that ``make lint`` holds (the contracts in pyproject.toml)."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

from tests.repository.sources import Source, sources

# The demonstration shows particular methods; nothing imports it.
# The table of old names tells them by the method, as they stood in files that were written before.
APPLICATIONS = {"t2ictl/cli/demo.py", "t2ictl/settings/legacy.py"}
# A smoothing kernel of that paper's public code, not the control.
KERNELS = {("t2ictl/maps/ops.py", "attend_and_excite"), ("t2ictl/controls/concepts.py", "attend_and_excite")}
CORE = tuple(source for source in sources("t2ictl") if source.path not in APPLICATIONS)
AT_THE_ROOT = 6  # Python files in t2ictl/ itself


def is_below(name: str, package: str) -> bool:
    """Whether ``name`` is ``package`` or something in it."""
    return name == package or name.startswith(package + ".")


def of_ours(source: Source) -> Iterator[str]:
    """Names of this library that a file imports."""
    return (name for name in source.imports() if is_below(name, "t2ictl"))


def test_the_root_of_the_package_holds_little() -> None:
    names = [source.path for source in sources("t2ictl") if source.path.count("/") == 1]
    assert len(names) <= AT_THE_ROOT, names


def test_the_core_imports_no_method_by_name() -> None:
    """The floors are held by import-linter; here, also what is loaded by a string."""
    found = [(source.path, word) for source in CORE for word in _words(source) if word in _method_words()]
    assert sorted({each for each in found if each not in KERNELS}) == []


def _method_words() -> set[str]:
    """Names of the methods and of their classes: token_merging, TokenMerging."""
    methods = {source.module.split(".")[2] for source in sources("processors") if source.module.count(".") > 1}
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


def users() -> dict[str, set[str]]:
    """For each core module the packages that import it: a method by its name, everything else by its folder."""
    modules = {source.module for source in sources("t2ictl")}
    found: dict[str, set[str]] = defaultdict(set)
    for source in sources():
        parts = source.module.split(".")
        owner = ".".join(parts[1:3] if parts[1:2] == ["processors"] else parts[:2])
        for name in of_ours(source):
            target = name if name in modules else name.rpartition(".")[0]
            if target in modules and target != source.module and parts[0] != "tests":
                found[target].add(owner)
    # A package is used by whoever uses what is in it.
    return {name: set().union(*(own for each, own in found.items() if is_below(each, name))) for name in found}


def test_no_core_module_serves_a_single_method() -> None:
    """What one method alone needs lives in the package of that method."""
    lone = {name: owners for name, owners in users().items() if len(owners) == 1}
    assert {name: owners for name, owners in lone.items() if next(iter(owners)).startswith("processors.")} == {}


def _inner(source: Source, *allowed: str) -> Iterator[str]:
    """Imports of modules that are neither public verbs, controls, errors nor ``allowed``."""
    modules = {other.module for other in sources()}
    for name in of_ours(source):
        parents = {name, name.rpartition(".")[0]}
        is_inner = any(parent in modules and parent != "t2ictl" for parent in parents)
        public = ("t2ictl.processors", "t2ictl.controls", "t2ictl.losses", "t2ictl.errors", *allowed)
        if is_inner and not any(is_below(name, package) for package in public):
            yield f"{source.path} imports {name}"


def test_the_app_uses_public_verbs() -> None:
    # The embedded model has a folder of its own, and heat maps have one scale of colors.
    allowed = ("t2ictl.app", "t2ictl.shapes", "t2ictl.maps.figures")
    assert [each for source in sources("app") for each in _inner(source, *allowed)] == []


def test_benchmarks_use_public_verbs_and_the_drawn_world() -> None:
    # The cost of a part cannot be measured through a verb that runs everything: benchmarks of speed may take parts.
    # A rival method that is there to be compared with is made of the same parts as the method.
    parts = ("t2ictl.benchmarks.speed", "t2ictl.benchmarks.studies.stories.key_gather")
    files = (f"settings.{name}" for name in ("files", "store", "yaml_files"))
    shared = ("benchmarks", "shapes", "evaluation", "maps.pages", "prompts.grammar", *files)
    ours = [source for source in sources("benchmarks") if not any(is_below(source.module, each) for each in parts)]
    assert [each for source in ours for each in _inner(source, *(f"t2ictl.{name}" for name in shared))] == []


def test_the_engine_knows_no_streamlit_and_views_know_no_torch() -> None:
    unwanted = {"t2ictl.app.engine": "streamlit", "t2ictl.app.views": "torch"}
    found = [
        f"{source.path} imports {package}"
        for source in sources("app")
        for folder, package in unwanted.items()
        if is_below(source.module, folder) and package in {name.split(".")[0] for name in source.imports()}
    ]
    assert found == []
