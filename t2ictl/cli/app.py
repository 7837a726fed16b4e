"""The command line. Progress goes to stderr, results to stdout; exit status 0, 2 (bad input) or 1 (failure)."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from t2ictl._version import __version__
from t2ictl.cli.contributions import contributed
from t2ictl.errors import Cancelled, ForeignCall, MoveLost, NonFiniteLoss, T2ictlError
from t2ictl.shapes.embedded import installed_models

__all__ = ["app", "main"]

app = typer.Typer(
    name="t2ictl",
    help="Control text-to-image diffusion at inference time, on your own diffusers pipeline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Things that go wrong during the work; every other named error is about what was asked for.
FAILURES = (Cancelled, ForeignCall, MoveLost, NonFiniteLoss)

# An operating system says so of a name that was given: too long, a folder in place of a file, not allowed, a circle.
BAD_NAMES = (errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP)
LONGEST_LINE = 1200

Prompt = Annotated[str, typer.Argument(help="What the image shall show.")]
EMBEDDED = ", ".join(installed_models())
Model = Annotated[
    str, typer.Option(help=f"{EMBEDDED} (embedded), a diffusers folder, a .safetensors file, or a hub id.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: CUDA where there is one.")]
Dtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16.")]
Controls = Annotated[list[str], typer.Option("--control", "-c", help="A control; may be given several times.")]
Preset = Annotated[
    str, typer.Option(help="Fields left open: auto (measured for the model, else defaults), published, or none.")
]
Sets = Annotated[list[str], typer.Option("--set", help="control.field=value, e.g. attention_segregation.strength=1.5")]
Checkpointing = Annotated[
    str, typer.Option(help="off, feed_forward, all or block: less memory for updates, more work, the same images.")
]
RunCode = Annotated[bool, typer.Option("--run-model-code", help="Run code that comes with the model; read it first.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Seed = Annotated[int, typer.Option(help="Seed of the first image.")]
Steps = Annotated[int, typer.Option(help="Denoising steps.")]
Size = Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels; default: the model's own.")]
Guidance = Annotated[
    float | None,
    typer.Option(help="Strength of classifier-free guidance; 1: none; default: 7.5, or what a transformer has itself."),
]
Negative = Annotated[str, typer.Option(help="Negative prompt.")]
Parser = Annotated[str, typer.Option(help="How objects are found: grammar or spacy.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Control text-to-image diffusion at inference time, on your own diffusers pipeline."""
    if version:
        print(__version__)
        raise typer.Exit()


@app.command()
def generate(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="What the image shall show.")] = None,
    control: Controls = [],  # noqa: B006 (typer reads the default and never changes it)
    set_: Sets = [],  # noqa: B006
    preset: Preset = "auto",
    model: Model = "shapes",
    seed: Seed = 0,
    steps: Steps = 25,
    size: Size = None,
    guidance_scale: Guidance = None,
    negative_prompt: Negative = "",
    out: Annotated[Path, typer.Option(help="The PNG to write; its settings are inside.")] = Path("out.png"),
    compare: Annotated[bool, typer.Option("--compare", help="Also write the plain image of the same seed.")] = False,
    again: Annotated[Path | None, typer.Option("--from", help="Make the image of this PNG or JSON file again.")] = None,
    parser: Parser = "grammar",
    device: Device = None,
    dtype: Dtype = "float32",
    checkpointing: Checkpointing = "off",
    run_model_code: RunCode = False,
    as_json: AsJson = False,
) -> None:
    """Make an image of a prompt, under control; with --from, options come before what the file says."""
    work = importlib.import_module("t2ictl.cli.commands")
    way = work.check_checkpointing(checkpointing)
    options = {"model": model, "seed": seed, "steps": steps, "size": size, "guidance_scale": guidance_scale}
    options |= {"negative_prompt": negative_prompt, "parser": parser}
    said = frozenset(name for name in options if getattr(context.get_parameter_source(name), "name", "") != "DEFAULT")
    job = work.read_job(prompt, again, options, said, control, set_, preset)
    work.check_place(out, ".png")
    for note in job.notes:
        print(note, file=sys.stderr)
    pipe = work.open_model(job.model, device, dtype, run_model_code=run_model_code)
    work.generate_files(pipe, job, out, compare=compare, checkpointing=way, as_json=as_json)


@app.command()
def maps(
    prompt: Prompt,
    words: Annotated[str, typer.Option(help="Words or phrases, with commas; default: every word.")] = "",
    layers: Annotated[
        str, typer.Option(help="Layer filter, with commas; default: all of the down and up blocks, which point best.")
    ] = "",
    by: Annotated[
        str, typer.Option(help="word: a heat map each, as files; depth: a table of which layers point at objects.")
    ] = "word",
    images: Annotated[int, typer.Option(help="With --by depth: of how many seeds.", min=1, max=1000)] = 1,
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("maps"),
    control: Controls = [],  # noqa: B006
    set_: Sets = [],  # noqa: B006
    preset: Preset = "auto",
    model: Model = "shapes",
    seed: Seed = 0,
    steps: Steps = 25,
    size: Size = None,
    guidance_scale: Guidance = None,
    negative_prompt: Negative = "",
    parser: Parser = "grammar",
    device: Device = None,
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Make an image and write the heat map of each word, on one scale; or measure in which layers they point."""
    work = importlib.import_module("t2ictl.cli.commands")
    asked = {"seed": seed, "steps": steps, "size": size, "guidance_scale": guidance_scale, "parser": parser}
    request = work.request_of(prompt, **asked, negative_prompt=negative_prompt)
    controls = work.controls_of(control, set_, preset=preset)
    chosen, where = (tuple(part.strip() for part in each.split(",") if part.strip()) for each in (words, layers))
    if work.is_by_depth(by):
        pipe = work.open_model(model, device, dtype)
        work.depth_table(pipe, request, controls, chosen, where, images, as_json=as_json)
        return
    work.check_place(out)
    work.map_files(work.open_model(model, device, dtype), request, controls, chosen, where, out, as_json=as_json)


@app.command()
def controls(
    name: Annotated[str | None, typer.Argument(help="One control, with all its fields.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the controls, or the fields of one."""
    importlib.import_module("t2ictl.cli.commands").print_controls(name, as_json=as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Describe what is installed and what works here; each attention kernel is run once."""
    examine = importlib.import_module("t2ictl.cli.doctor").examine
    findings = examine()
    if as_json:
        print(json.dumps([finding.to_dict() for finding in findings], indent=2))
    else:
        for finding in findings:
            mark = "ok" if finding.works else ("FAILS" if finding.needed else "--")
            print(f"{mark:5} {finding.topic:8} {finding.name:38} {finding.detail}")
    if any(finding.needed and not finding.works for finding in findings):
        raise typer.Exit(1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(context: typer.Context) -> None:
    """Measure controls over many prompts: `t2ictl bench --help`."""
    inner = importlib.import_module("t2ictl.benchmarks.commands").app
    raise typer.Exit(inner(args=context.args, prog_name="t2ictl bench", standalone_mode=False) or 0)


@app.command("app")
def editor(
    port: Annotated[int, typer.Option(help="To listen on, on this machine only.")] = 8501,
    models: Annotated[
        list[Path], typer.Option(help="A folder below which diffusers folders lie; may be given several times.")
    ] = [],  # noqa: B006
    device: Device = None,
    dtype: Dtype = "float32",
    checkpointing: Checkpointing = "off",
    headless: Annotated[bool, typer.Option("--headless", help="Do not open a browser window.")] = False,
) -> None:
    """Open the interactive editor in the browser."""
    launch = importlib.import_module("t2ictl.app.launch")
    way = importlib.import_module("t2ictl.session.checkpoints").check_checkpointing(checkpointing)
    devices = importlib.import_module("t2ictl.families.devices")
    devices.check_dtype(dtype)
    if device is not None:
        devices.check_device(device)
    given = {"device": device, "dtype": dtype, "checkpointing": way}
    raise typer.Exit(launch.serve(port, models, **given, is_headless=headless))


def _add_contributed() -> None:
    """Add the commands of methods and of installed packages, once."""
    known = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    for point in contributed("commands").values():
        if point.name in known:
            continue
        try:
            app.command(point.name)(point.load())
        except Exception as error:  # one broken package must not take the others down, nor be hidden
            print(f"t2ictl: the command {point.name!r} ({point.value}) cannot be loaded: {error}", file=sys.stderr)


def _say(error: BaseException | str, status: int) -> int:
    """Print an error as one line, whatever characters are in it."""
    print(f"t2ictl: {_line(str(error))}", file=sys.stderr)
    return status


def _line(text: str) -> str:
    """A text as one line of a length that can be read, without half characters."""
    line = " ".join(text.split("\n")).encode("utf-8", "backslashreplace").decode("utf-8")
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE * 2 // 3]} ... {line[-LONGEST_LINE // 4 :]}"


def _usage(error: Exception) -> int:
    """Print what typer found wrong with the options: one line; the help where nothing was asked for."""
    text = str(error.format_message())  # type: ignore[attr-defined]
    if type(error).__name__ == "NoArgsIsHelpError":
        print(text, file=sys.stderr)
        return 2
    return _say(
        f"{text.rstrip('.')}. See `{getattr(getattr(error, 'ctx', None), 'command_path', 't2ictl')} --help`.", 2
    )


@contextlib.contextmanager
def _any_characters() -> Iterator[None]:
    """Print what a stream's encoding has no character for as an escape: a name of a file can hold anything."""
    streams = [each for each in (sys.stdout, sys.stderr) if isinstance(each, io.TextIOWrapper)]
    before = [(each, each.errors) for each in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in before:
            stream.reconfigure(errors=errors)


@contextlib.contextmanager
def _warnings_on_one_line() -> Iterator[None]:
    """Print a warning as one line; whoever records warnings still gets them."""
    before = warnings.showwarning

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        print(f"warning: {_line(' '.join(str(message).split()))}", file=sys.stderr)
        before(message, category, filename, lineno, io.StringIO(), line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


@contextlib.contextmanager
def _notes_printed() -> Iterator[None]:
    """Print what the library logs about its work."""
    logger, handler = logging.getLogger("t2ictl"), logging.StreamHandler(sys.stderr)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the arguments; None for those of the process.

    Returns:
        Exit status: 0; 2 for bad input, with one line on stderr that says what to do; 1 for a failure.

    Example:
        >>> main(["--version"])
        0.1.0
        0
    """
    # Read by transformers at its import; without it every command reports that torchvision is absent.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    _add_contributed()
    try:
        with _any_characters(), _warnings_on_one_line(), _notes_printed():
            status = app(args=arguments, standalone_mode=False)
        return status if isinstance(status, int) else 0
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0
    except (typer.Abort, KeyboardInterrupt):
        return _say("Stopped.", 130)
    except FAILURES as error:
        return _say(error, 1)
    except T2ictlError as error:
        return _say(error, 2)
    except BrokenPipeError:
        return 1
    except OSError as error:
        return _say(f"A file cannot be read or written: {error}.", 2 if error.errno in BAD_NAMES else 1)
    except Exception as error:
        if hasattr(error, "format_message"):  # of typer, whose base class has had several homes
            return _usage(error)
        if sys.flags.dev_mode:
            raise
        return _say(_unexpected(error), 1)


def _unexpected(error: Exception) -> str:
    """What went wrong in a way that nobody has thought of, with its place."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f" ({trace.tb_frame.f_globals.get('__name__', '?')}, line {trace.tb_lineno})"
    return f"Unexpected {type(error).__name__}: {error}{place}. `python -X dev -m t2ictl ...` shows the way there."


if __name__ == "__main__":
    sys.exit(main())
