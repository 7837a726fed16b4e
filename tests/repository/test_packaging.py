"""What is built is what the repository holds, and the type check really sees all five folders."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.repository.sources import LINKED, ROOT, Source, repository_files, sources

FOLDERS = ("t2ictl", *LINKED)
NOT_INSTALLED = ("t2ictl.benchmarks.shapes", "t2ictl.benchmarks.studies")  # in the repository, not in the wheel
LEFT_BEHIND = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "demo", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
)


MODELS = ("t2ictl/shapes/model/", "t2ictl/shapes/models/")  # the second is there with the weights of further models


def _inside(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _copy(folder: Path) -> Path:
    """The checkout, links kept, without what tools left behind."""
    return Path(shutil.copytree(ROOT, folder / "checkout", symlinks=True, ignore=LEFT_BEHIND))


def _run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=900)


def _is_installed(name: str) -> bool:
    return not any(name == package or name.startswith(f"{package}.") for package in NOT_INSTALLED)


def _installed() -> list[Source]:
    return [source for source in sources(*FOLDERS) if _is_installed(source.module)]


def test_every_package_is_declared() -> None:
    found = {source.module for source in _installed() if source.path.endswith("__init__.py")}
    assert sorted(_pyproject()["tool"]["setuptools"]["packages"]) == sorted(found)


def test_nothing_that_is_installed_imports_what_is_not() -> None:
    found = [(source.path, name) for source in _installed() for name in source.imports() if not _is_installed(name)]
    assert found == []


@pytest.mark.parametrize("package", NOT_INSTALLED)
def test_a_checkout_has_what_the_wheel_has_not(package: str) -> None:
    file = import_module(package).__file__
    assert file is not None and Path(file).resolve() == ROOT / "benchmarks" / package.split(".")[-1] / "__init__.py"


def test_every_folder_with_code_is_a_package() -> None:
    packages = {Path(source.path).parent for source in sources(*FOLDERS) if source.path.endswith("__init__.py")}
    assert {Path(source.path).parent for source in sources(*FOLDERS)} <= packages


def test_extras_named_in_the_code_exist() -> None:
    extras = set(_pyproject()["project"]["optional-dependencies"])
    assert {"app", "bench", "ray", "xformers", "spacy", "dev"} <= extras


def test_every_dependency_is_pinned_in_the_tested_set() -> None:
    project = _pyproject()["project"]
    # Not part of the tested set: each brings its own build of large libraries.
    needed = [*project["dependencies"]]
    for extra, names in project["optional-dependencies"].items():
        needed += [] if extra in {"ray", "xformers", "spacy"} else names
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert sorted(need.split(">=")[0] for need in needed if need.split(">=")[0] not in pinned) == []


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and a source archive built from a copy of the checkout."""
    copy = _copy(tmp_path_factory.mktemp("build"))
    out = copy.parent / "dist"
    done = _run("-m", "build", "--no-isolation", "--outdir", str(out), str(copy), cwd=copy)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return out


def _expected_in_wheel() -> set[str]:
    """Installed paths of all code, and of the data that belongs to it."""
    code = {("" if source.path.startswith("t2ictl/") else "t2ictl/") + source.path for source in _installed()}
    data = {path for path in map(_inside, repository_files()) if path.startswith(MODELS)}
    app = ROOT / "app"
    pages = {_inside(path) for path in repository_files() if path.suffix == ".j2"}
    parts = [
        path for path in repository_files() if path.is_relative_to(app) and path.suffix in {".css", ".js", ".json"}
    ]
    pages |= set(map(_inside, parts))
    pages = {path if path.startswith("t2ictl/") else f"t2ictl/{path}" for path in pages}
    return code | data | pages | {"t2ictl/py.typed", "t2ictl/shapes/instrument.json", "t2ictl/shapes/measured.json"}


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(archives: Path) -> None:
    (wheel,) = archives.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
        info = [name for name in opened.namelist() if name.endswith("METADATA")]
        metadata = opened.read(info[0]).decode()
    assert {name.split("/")[0] for name in names} == {"t2ictl"}  # so none of the four lies at the top
    assert names == _expected_in_wheel()
    assert "License-Expression: Apache-2.0" in metadata


@pytest.mark.slow
def test_source_archive_is_the_repository(archives: Path) -> None:
    (archive,) = archives.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    code = {source.path for source in sources(*FOLDERS)}
    model = {path for path in _expected_in_wheel() if path.startswith(MODELS)}
    assert code | model | {"LICENSE", "pyproject.toml", "constraints.txt", "t2ictl/py.typed"} <= names


@pytest.mark.slow
def test_wheel_works_without_the_repository(archives: Path, tmp_path: Path) -> None:
    (wheel,) = archives.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "from importlib import import_module\n"
        "for name in ('processors', 'losses', 'app', 'benchmarks'):\n"
        "    module = import_module(f't2ictl.{name}')\n"
        "    assert module.__file__.startswith(sys.path[0]), module.__file__\n"
    )
    done = _run("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    study = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "from t2ictl.cli.app import main\n"
        "sys.exit(main(['bench', 'study', 'composition']))\n"
    )
    done = _run("-c", study, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "not part of the wheel" in done.stderr and "checkout" in done.stderr


@pytest.mark.slow
def test_type_check_sees_an_error_across_any_two_folders(tmp_path: Path) -> None:
    """The mapping alone passes such errors with a clean report; the links are what makes the check true."""
    copy = _copy(tmp_path)
    for folder, other in zip(FOLDERS, (*LINKED, "t2ictl"), strict=True):
        module = "t2ictl" if other == "t2ictl" else f"t2ictl.{other}"
        (copy / folder / "planted.py").write_text(
            f'"""Planted."""\n\nfrom {module}.planted import number_{other} as given\n\n'
            f"WORD: str = given()\n\n\ndef number_{folder}() -> int:\n"
            f'    """Give a number."""\n    return 1\n',
            encoding="utf-8",
        )
    if (ROOT / ".mypy_cache").is_dir():  # spares the analysis of torch
        shutil.copytree(ROOT / ".mypy_cache", copy / ".mypy_cache")
    done = _run("-m", "mypy", cwd=copy)
    assert done.returncode == 1, done.stdout + done.stderr
    for folder in FOLDERS:
        inside = "t2ictl" if folder == "t2ictl" else f"t2ictl/{folder}"
        report = [line for line in done.stdout.splitlines() if line.startswith(f"{inside}/planted.py:5:")]
        assert report and "Incompatible types in assignment" in report[0], done.stdout[-4000:]
