"""The hash of the code in plan.json: of all modules that decide rows, at any depth, and of no others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import t2ictl
from t2ictl.benchmarks.runs.manifest import source_files, source_hash
from tests.repository.sources import LINKED, ROOT

DECIDES = (
    "processors/token_flow/analysis/repair.py",
    "processors/token_flow/analysis/__init__.py",
    "processors/isolation_reposition/story/__init__.py",  # two folders deep
    "t2ictl/evaluation/judges/base.py",
    "t2ictl/evaluation/statistics/intervals.py",
    "t2ictl/shapes/verdict.py",
    "t2ictl/generation.py",
    "losses/overlap.py",
    "benchmarks/runs/units.py",
    "benchmarks/suites/published/sets.py",
)
DECIDES_NOT = (
    "benchmarks/results/tables.py",
    "benchmarks/results/report/write.py",
    "benchmarks/speed/update.py",
    "benchmarks/studies/stories/arms.py",
    "benchmarks/shapes/train/loop.py",
    "benchmarks/scoring/run.py",
    "t2ictl/cli/app.py",
    "app/state.py",
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the Python files, with its links, as a checkout has them."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        paths = [Path(folder, name) for name in names]
        kept = {path.name for path in paths if path.is_dir() or path.suffix == ".py"}
        return set(names) - kept | {"__pycache__"}

    for name in ("t2ictl", *LINKED):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignored)
    return tmp_path


def change(path: Path) -> None:
    """Change one byte: the first letter of the docstring becomes another one."""
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def test_a_copy_has_the_hash_of_the_checkout(tree: Path) -> None:
    assert (tree / "t2ictl" / "processors").is_symlink()
    assert source_hash(tree / "t2ictl") == source_hash(Path(t2ictl.__file__).parent)


def test_one_byte_of_what_decides_rows_changes_the_hash(tree: Path) -> None:
    hashes = [source_hash(tree / "t2ictl")]
    for name in DECIDES:
        change(tree / name)
        hashes.append(source_hash(tree / "t2ictl"))
    assert len(set(hashes)) == len(hashes)


def test_nothing_else_changes_the_hash(tree: Path) -> None:
    before = source_hash(tree / "t2ictl")
    for name in DECIDES_NOT:
        change(tree / name)
    assert source_hash(tree / "t2ictl") == before


def test_a_module_that_comes_goes_or_is_renamed_changes_the_hash(tree: Path) -> None:
    hashes = [source_hash(tree / "t2ictl")]
    module = tree / "processors" / "token_flow" / "analysis" / "repair.py"
    module.rename(module.with_name("repairs.py"))
    hashes.append(source_hash(tree / "t2ictl"))
    module.with_name("repairs.py").unlink()
    hashes.append(source_hash(tree / "t2ictl"))
    (tree / "losses" / "deep" / "deeper").mkdir(parents=True)
    (tree / "losses" / "deep" / "deeper" / "new.py").write_bytes(b"")
    hashes.append(source_hash(tree / "t2ictl"))
    assert len(set(hashes)) == len(hashes)


def test_each_file_is_read_once_and_in_the_same_order(tree: Path) -> None:
    found = source_files(tree / "t2ictl")
    names = [path.relative_to(tree / "t2ictl").as_posix() for path in found]
    assert names == sorted(set(names)) and not {name.split("/")[0] for name in names} & {"app", "cli"}
    real = {path.resolve() for path in found}
    assert len(real) == len(found) and {tree / name for name in DECIDES} <= real
