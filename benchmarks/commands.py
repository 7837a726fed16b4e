"""The commands of ``t2ictl bench``. What they do is imported when they run, so that ``--help`` loads no torch."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from t2ictl.benchmarks import study
from t2ictl.benchmarks.results.compare import compare_command, power_command
from t2ictl.benchmarks.results.models import models_command
from t2ictl.benchmarks.speed import command as speed
from t2ictl.shapes import installed_models

__all__ = ["app"]

EMBEDDED = ", ".join(installed_models())

app = typer.Typer(
    name="bench",
    help="Measure controls: run arms over a suite of prompts, and compare them with intervals.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

PlanFile = Annotated[Path | None, typer.Argument(help="A YAML file with the fields below; options replace its values.")]
Out = Annotated[Path, typer.Option(help="The folder of the run; an interrupted run goes on from what is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Suite = Annotated[str | None, typer.Option(help="shapes, everyday, or a published set (`t2ictl bench sets`).")]
Data = Annotated[str | None, typer.Option(help="Folder with the files of published sets.")]
Model = Annotated[str | None, typer.Option(help=f"{EMBEDDED} (embedded), a diffusers folder, or a hub id.")]
Arms = Annotated[str | None, typer.Option(help="With commas: plain, a control, random:<arm>, best-of-N[:<arm>].")]
Kinds = Annotated[str | None, typer.Option(help="Categories of the suite, with commas; default: pair.")]
Split = Annotated[str | None, typer.Option(help="tune (default) or report.")]
Prompts = Annotated[str | None, typer.Option(help="Prompts of each kind: 50, or pair=400,triple=200.")]
Seeds = Annotated[int | None, typer.Option(help="Images of each prompt and arm; default: 4.")]
FirstSeed = Annotated[int | None, typer.Option(help="The first of the seeds; default: 0.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps; default: 20.")]
Guidance = Annotated[float | None, typer.Option(help="Strength of classifier-free guidance; default: 3.")]
Batch = Annotated[int | None, typer.Option(help="Images in one tensor batch; default: 8.")]
Limit = Annotated[int | None, typer.Option(help="Most prompts in all: a smoke run, marked as no result.")]
ShardOption = Annotated[str, typer.Option("--shard", help="i/n: make every n-th batch, from the i-th.")]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Make batches with failed rows again.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of torch in this process.")]
Engine = Annotated[str, typer.Option(help="local, or ray: workers in processes of their own, here or in a cluster.")]
Workers = Annotated[int, typer.Option(min=1, help="Workers of ray; each has the model loaded, on a GPU of its own.")]
Dtype = Annotated[str, typer.Option(help="Precision of the weights: float32, float16 or bfloat16.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: CUDA where there is one.")]


@app.command()
def run(
    out: Out,
    plan_file: PlanFile = None,
    suite: Suite = None,
    data: Data = None,
    model: Model = None,
    arms: Arms = None,
    kinds: Kinds = None,
    split: Split = None,
    prompts: Prompts = None,
    seeds: Seeds = None,
    first_seed: FirstSeed = None,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = None,
    limit: Limit = None,
    shard: ShardOption = "1/1",
    retry_failed: Retry = False,
    threads: Threads = 1,
    device: Device = None,
    dtype: Dtype = "float32",
    engine: Engine = "local",
    workers: Workers = 1,
    score_with: Annotated[
        list[str], typer.Option("--score", help="Then score with this metric, and compare; see `t2ictl bench score`.")
    ] = [],  # noqa: B006 (typer reads the default and never changes it)
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything but the weights; make nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run arms over prompts and seeds, or go on with a run; then merge, and score where that is asked for."""
    given = {
        "suite": suite,
        "data": data,
        "model": model,
        "kinds": kinds,
        "split": split,
        "prompts": prompts,
        "seeds": seeds,
        "first_seed": first_seed,
        "steps": steps,
        "guidance": guidance,
        "batch": batch,
        "limit": limit,
    }
    options = {key: value for key, value in given.items() if value is not None}
    share = importlib.import_module("t2ictl.benchmarks.runs.units").Shard.read(shard)
    plan = _plan(plan_file, options, arms)
    work = importlib.import_module("t2ictl.benchmarks.runs.runner")
    for text in score_with:  # named wrongly, it is found out now and not after a night's work
        importlib.import_module("t2ictl.benchmarks.scoring.metrics").check_metric(text, plan.data)
    if dry_run:
        print(work.foretell(plan))
        return
    runtime = work.Runtime(device=device, dtype=dtype, threads=threads)
    how = {"shard": share, "retry_failed": retry_failed, "engine": engine, "workers": workers}
    outcome = work.run(plan, out, runtime=runtime, **how)
    is_whole = not (outcome.missing or outcome.failed)
    base = next(iter(plan.arms))
    scored = [_score(out, text, base, device or _best_device(), plan.data) for text in score_with if is_whole]
    _report(outcome, out, scored, as_json=as_json)


@app.command()
def merge(
    folder: Annotated[Path, typer.Argument(help="The --out of a run, all shards of which are done.")],
    as_json: AsJson = False,
) -> None:
    """Merge the rows of all processes into results.parquet, and print the table."""
    work = importlib.import_module("t2ictl.benchmarks.runs.runner")
    _report(work.merge(folder), folder, as_json=as_json)


@app.command()
def sets(
    folder: Annotated[Path, typer.Argument(help="Where published prompt files are.")], as_json: AsJson = False
) -> None:
    """Read the published prompt sets of a folder, and say how many prompts each has; a bad line is named."""
    found = importlib.import_module("t2ictl.benchmarks.suites.published.sets").counted(folder)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for name, counts in found.items():
        print(f"{name:20} {sum(counts.values()):6}  {', '.join(f'{kind} {count}' for kind, count in counts.items())}")


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(help="The --out of a run that is done.")],
    metric: Annotated[str, typer.Option(help="blip_vqa:MODEL; or clip_cosine, vqascore, caption_cosine, geneval.")],
    against: Annotated[str, typer.Option(help="The arm that the others are compared with.")] = "plain",
    device: Annotated[str, typer.Option(help="Where the judge computes: cpu, cuda, ...")] = "cpu",
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Score the images of a run with a learned judge, and compare the arms; it goes on where it was stopped."""
    facts, text = _score(folder, metric, against, device, data)
    print(json.dumps(facts, indent=2) if as_json else text)


def _score(folder: Path, metric: str, against: str, device: str, data: str | None) -> tuple[dict[str, Any], str]:
    """Score a run; gives the table as data and as text."""
    metrics = importlib.import_module("t2ictl.benchmarks.scoring.metrics")
    work = importlib.import_module("t2ictl.benchmarks.scoring.run")
    chosen = metrics.open_metric(metric, device, data)
    with tqdm(desc=chosen.name, file=sys.stderr, disable=None) as bar:

        def tell(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        scores = work.score_run(folder, chosen, on_image=tell)
    table = work.score_table(scores, against)
    return {"metric": chosen.name, **chosen.facts, "table": table}, work.table_text(table, chosen.name)


def _best_device() -> str:
    return "cuda" if importlib.import_module("torch").cuda.is_available() else "cpu"


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The --out of a run that is done and judged, or scored.")],
    out: Annotated[Path | None, typer.Option(help="The folder of the report; default: RUN/report.")] = None,
    against: Annotated[list[str], typer.Option(help="Arms to compare with; the first one is that of the plots.")] = [  # noqa: B006
        "plain"
    ],
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Report what is there, marked as incomplete.")
    ] = False,
    tensorboard: Annotated[Path | None, typer.Option(help="Also write events for TensorBoard here.")] = None,
) -> None:
    """Write tables, plots, contact sheets, and a page with the images of all arms side by side."""
    for module in ("matplotlib", "pandas", "pyarrow", "statsmodels", "tabulate"):
        importlib.import_module("t2ictl.benchmarks.extras").need(module)
    work = importlib.import_module("t2ictl.benchmarks.results.report.write")
    target = out or folder / "report"
    print(work.write_report(folder, target, against=against, allow_missing=allow_missing, tensorboard=tensorboard))


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="The --out of a run that is done.")],
    arm: Annotated[str, typer.Option(help="Which of its arms.")],
    layout: Annotated[str, typer.Option(help="t2i_compbench, attend_and_excite or geneval.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    data: Data = None,
) -> None:
    """Copy the images of an arm into the folders that an official evaluator reads."""
    count = importlib.import_module("t2ictl.benchmarks.results.export").export_run(folder, arm, layout, out, data)
    print(f"{count} images in {out}")


app.command("compare")(compare_command)
app.command("models")(models_command)
app.command("power")(power_command)
app.command("speed", help=speed.HELP)(speed.speed_command)
app.add_typer(study.app)


def _plan(path: Path | None, options: dict[str, Any], labels: str | None) -> Any:
    """The plan of a file, with the options given over it; --arms picks among the file's arms, or names others."""
    plans = importlib.import_module("t2ictl.benchmarks.runs.plan")
    if path is None:
        return plans.make_plan(options | ({} if labels is None else {"arms": labels}))
    written = plans.read_plan_file(path)
    plan = plans.make_plan(written)
    values = plan.model_dump(include={*written, "arms"}) | options
    if labels is not None:
        named = list(plans.make_plan({"arms": labels}).arms)
        values["arms"] = {label: values["arms"].get(label) for label in named}
    return plans.make_plan(values)


def _report(outcome: Any, folder: Path, scored: Sequence[tuple[dict[str, Any], str]] = (), *, as_json: bool) -> None:
    """Print what a folder holds; end with status 1 if a row failed."""
    summaries = importlib.import_module("t2ictl.benchmarks.runs.summary")
    manifest = outcome.manifest
    limited = importlib.import_module("t2ictl.benchmarks.runs.manifest").limited_note(manifest)
    table = summaries.summarize(outcome.rows, list(manifest["arms"]))
    if as_json:
        facts = {key: manifest[key] for key in ("hash", "instrument", "limited", "commit")}
        scores = {"scores": [found for found, _ in scored]} if scored else {}
        counts = {"rows": len(outcome.rows), "failed": outcome.failed, "missing_batches": outcome.missing}
        counts |= {"overflowed_moves": outcome.overflowed}
        print(
            json.dumps({"folder": str(folder), **facts, **counts, "note": limited, "table": table, **scores}, indent=2)
        )
    else:
        notes = [f"plan {manifest['hash']}, instrument {manifest['instrument']}", *([limited] if limited else [])]
        if outcome.missing:
            notes.append(f"not complete: {outcome.missing} batches are missing; no results.parquet yet")
        if outcome.overflowed:
            notes.append(f"{outcome.overflowed} moves were longer than a number can say; their lengths are null")
        print("\n\n".join([summaries.summary_text(table, notes), *(text for _, text in scored)]))
    if outcome.failed:
        raise typer.Exit(1)
