"""Kill runs at random moments: ``python -m tests.benchmarks.kill_runs FOLDER KILLS PROMPTS``.

Imports once and forks the runs, so that the kills fall on the work and not on imports. Writes
FOLDER/whole, a run that nothing disturbed, and FOLDER/killed-0, -1, ..., which were killed KILLS times in all and then
run to the end. Prints the number of kills that found a run alive.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import diffusers
import torch
import transformers

import t2ictl
from t2ictl.cli.app import main
from t2ictl.shapes import instrument_id

ARMS = "plain,attention_segregation,random:attention_segregation,best-of-2"
OPTIONS = ("--arms", ARMS, "--seeds", "2", "--steps", "2", "--batch", "2", "--device", "cpu")


def start(out: Path, prompts: int) -> int:
    """Start a run in a process of its own."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        os._exit(main(["bench", "run", *OPTIONS, "--limit", str(prompts), "--out", str(out)]))
    return child


def finish(out: Path, prompts: int) -> float:
    """Run to the end; gives the seconds."""
    began = time.perf_counter()
    _, status = os.waitpid(start(out, prompts), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return time.perf_counter() - began


def kill_after(out: Path, prompts: int, seconds: float) -> bool:
    """Kill a run; says whether it was still alive."""
    child = start(out, prompts)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def kill_runs(folder: Path, kills: int, prompts: int) -> int:
    """Do what this file is for."""
    generator = random.Random(kills)
    whole = finish(folder / "whole", prompts)
    done = number = 0
    while done < kills:
        out = folder / f"killed-{number}"
        # On the average a third of the work between two kills; where a run ends before its kill, the next begins.
        while done < kills and kill_after(out, prompts, generator.uniform(0.02, 0.6) * whole):
            done += 1
        number += 1
    for out in folder.glob("killed-*"):
        finish(out, prompts)
    return done


if __name__ == "__main__":
    torch.set_num_threads(1)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    t2ictl.list_controls()
    t2ictl.load("shapes", device="cpu")  # its modules are imported when they are first used
    instrument_id()
    print(kill_runs(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
