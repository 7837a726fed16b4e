"""What must not stand in any file: traces of one machine, and notes that something is unfinished."""

from __future__ import annotations

import re

from tests.repository.sources import ROOT, repository_files

MACHINE_PATH = re.compile(r"(?<![\w.:/$~-])/(?:work|root|home|Users|mnt)/\w")
UNFINISHED = re.compile(r"\b(?:TO" + "DO|FIX" + r"ME|XX" + r"X)\b")
BINARY = {".safetensors", ".png", ".jpg", ".npz", ".npy", ".pt", ".gz", ".zip", ".ico", ".woff2"}
TEXTS = [path for path in repository_files() if path.suffix not in BINARY]


def test_no_machine_path_and_no_unfinished_note() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in TEXTS
        for pattern in (MACHINE_PATH, UNFINISHED)
        if (match := pattern.search(path.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_constraints_pin_versions_and_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line.strip() and not line.startswith("#")]
    strange = [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*(; [^:@]+)?", line)]
    assert pins and strange == []


def test_links_are_relative_and_lead_to_the_four_folders() -> None:
    links = {path.name: path.readlink().as_posix() for path in (ROOT / "t2ictl").iterdir() if path.is_symlink()}
    assert links == {name: f"../{name}" for name in ("processors", "losses", "app", "benchmarks")}
