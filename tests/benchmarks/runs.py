"""Small runs of the embedded model that many tests share."""

from __future__ import annotations

import hashlib
from pathlib import Path

from t2ictl.cli.app import main

ARMS = "plain,attention_segregation,random:attention_segregation,best-of-2,best-of-2:attention_segregation"
SMALL = ("--limit", "3", "--seeds", "2", "--steps", "2", "--batch", "2", "--device", "cpu")


def bench(out: Path, *options: str, arms: str = ARMS) -> int:
    """Run, or go on with, a small benchmark; gives the exit status."""
    return main(["bench", "run", "--arms", arms, *SMALL, "--out", str(out), *options])


def fingerprint(out: Path) -> dict[str, str]:
    """Hashes of the table and of every image."""
    files = [out / "results.parquet", *sorted(out.glob("images/*/*.png"))]
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
