"""Command lines: every command that makes images or reads files, with values that are right, wrong and absurd."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from tests.fuzz.places import PLACES

__all__ = ["command_lines"]

Line = list[str]
Values = st.SearchStrategy[str]

#: Half a character: what a byte that is no UTF-8 becomes on the command line.
HALF = "a \udcff circle"
ANYTHING = st.text(max_size=30) | st.sampled_from(
    ["", " ", "\0", HALF, "-", "--", "=", "\n", "é", "\u202e", "x" * 5000]
)
NUMBERS: tuple[str, ...] = (
    "",
    "-1",
    "0",
    "1.5",
    "1e3",
    "0x10",
    "1_0",
    "²",
    "nan",
    "inf",
    "2147483648",
    str(2**64),
    "1" + "0" * 30,
)
NUMBERS = (*NUMBERS, "9" * 5000, "9" * 400, "three", "-0", " 1", "None", "true")
PROMPTS = (
    "a red circle and a blue square", "a cat", "circle", "a circle, a circle and a circle",
    "(a red:1.4) [circle] {x|y}",
    "круг и квадрат", "🟥 and 🔵", "a ré́d circle", "?!", "a red circle " * 300, "_", "\ta\nb", "a <lora:x:1> b",
    "<|endoftext|>", "<|startoftext|> a circle", "a" * 4000, "the of and", "1 2 3", "it's a circle's",
    "赤い円", '"', "\\",
)  # fmt: skip
BAD_PROMPTS = ("", " ", "\n\t", "\u3000", HALF, "\0", "a\0circle")
MODELS = ("shapes", "tiny", "./tiny", "tiny/")
BAD_MODELS = (
    "", " ", "nowhere", "./nothere", "owner/name", "a/b/c", "owner/na me", "../..", ".", "/", "~", "empty", "index",
    "strange", "numbers", "parts", "damaged", "a file", "text.safetensors", "huge.safetensors", "text.ckpt",
    "models/foo.safetensors", "empty/x.ckpt", "shapes ", "SHAPES", "a\0b", "a\nb", "\udcff", "x" * 5000,
    "o" * 90 + "/" + "n" * 90, "https://localhost:1/a/b", "tiny/unet", "link.png", "circle.png", "--", "good.png",
)  # fmt: skip
CONTROLS = (
    "attention_segregation", "attend_and_excite", "box_diff", "structured_guidance", "token_flow", "linguistic_binding",
    "initial_noise", "self_cross_guidance", "layout_guidance", "map_alignment", "divide_and_bind", "token_merging",
)  # fmt: skip
SETS = (
    "attention_segregation.strength=0.5", "attention_segregation.window.stop=0.5", "attention_segregation.step=null",
    'attend_and_excite.concepts=["circle"]', "attend_and_excite.refinement=null", "attention_segregation.layers=[]",
)  # fmt: skip
PATHS = (
    "strength",
    "step",
    "step.scale",
    "window",
    "window.start",
    "layers",
    "concepts",
    "nope",
    "",
    "a.b.c",
    "preset",
)
JSON = (
    "1", "-1", "0", "nan", "NaN", "Infinity", "-Infinity", "1e400", "null", "true", "{}", "[]", '""', '"', "{", "[1,2",
    "9" * 5000, '{"scale": 1, "nope": 2}', "[" * 50_000, '"\\ud800"', "[[[[[]]]]]", '["up.*"]', '["("]', '["nowhere"]',
    '[""]', '["dog"]', '[["circle", "square"]]', "[null]", '{"circle": [0,0,1,1]}', '"auto"', "\0", HALF, "1e-320",
)  # fmt: skip
SIZES = ("64x64", "64X64", "64x32", "8x8", "32x64")
BAD_SIZES = (
    "", "x", "64", "64x", "x64", "0x0", "0x64", "-64x64", "63x64", "65x65", "9999999x1", "8200x64", "64x64x64", "axb",
    "٦٤x٦٤", "64 x 64", "64×64", "6.4e1x64", "1" * 400 + "x64", "64x64\n", "\0", HALF, "4x4", "16x8200",
)  # fmt: skip
OUTS = ("a.png", "./a.png", "A.PNG", "é.png", "a b.png", "🟥.png", "empty/a.png", "a file.png", "link.png", "-.png")
BAD_OUTS = (
    "", ".", "..", "/", "a", "a.jpg", ".png", "a.png/", "folder.png", "nowhere/a.png", "a file/b.png", "a\0.png",
    "x" * 300 + ".png", "x" * 252 + ".png", "/proc/a.png", "/dev/null", "circle.png/a.png", "\udcff/a.png", "~/a.png",
    "circle.png", "a\n.jpg", "/" + "d/" * 3000 + "a.png",
)  # fmt: skip
LAYERS = ("up.*", "down.*,up.*", "cross", "cross@2", "mid", "up@2")
BAD_LAYERS = (
    "nowhere",
    "(",
    "cross@99",
    "cross@x",
    "@",
    ",",
    "self",
    "*",
    "[",
    "cross@-1",
    "cross@" + "9" * 5000,
    "\0",
)
BAD_FILES = (
    "nowhere.png",
    "/",
    "a\0b",
    "\udcff",
    ".",
    "",
    "x" * 5000,
    "/proc/self/mem",
    "/dev/null",
    "empty/../a.png",
    "~",
)


@st.composite
def _mostly(draw: st.DrawFn, good: Sequence[str], bad: Sequence[str] | Values, share: int = 4) -> str:
    """A good value, or one time in ``share`` a bad one or any text."""
    if draw(st.integers(1, share)) < share:
        return draw(st.sampled_from(good))
    wrong = bad if isinstance(bad, st.SearchStrategy) else st.sampled_from(bad)
    return draw(wrong if draw(st.integers(1, 6)) < 6 else ANYTHING)


def _files(*good: str, ending: str = "") -> Values:
    return _mostly(good, [*(each for each in PLACES if each.endswith(ending)), *BAD_FILES])


def _sets() -> Values:
    name = st.sampled_from(["attention_segregation", "attend_and_excite", "nope", "", "attention_segregation."])
    bad = st.builds("{}.{}={}".format, name, st.sampled_from(PATHS), st.sampled_from(JSON))
    return _mostly(SETS, bad | st.sampled_from(["strength", "=", ".=", "a.b", "a=b", "....=1"]), 3)


#: Options that several commands have: value by name.
SHARED: dict[str, Values] = {
    "--model": _mostly(MODELS, BAD_MODELS),
    "--device": _mostly(
        ["cpu"], ["", "cuda", "cuda:7", "cuda:-1", "mps", "meta", "xpu", "warp", "cpu:3", "cpu:x", "0"]
    ),
    "--dtype": _mostly(
        ["float32"], ["float64", "bfloat16", "int8", "", "Float32", "torch.float32", "half", "complex64"]
    ),
}
REQUEST: dict[str, Values] = {
    **SHARED,
    "--seed": _mostly(["0", "7", "2147483648", str(2**64 - 1), "+3"], NUMBERS),
    "--steps": _mostly(["1", "2"], [*(each for each in NUMBERS if each != "1e3"), "5000", "1001"]),
    "--size": _mostly(SIZES, BAD_SIZES),
    "--guidance-scale": _mostly(["1", "0", "7.5", "2e0"], [*NUMBERS, "-3", "1e300", "1e400", "-inf", "3,5"]),
    "--negative-prompt": _mostly(["", "a dog", *PROMPTS], [HALF, "\0", "x" * 9000]),
    "--parser": _mostly(["grammar"], ["spacy", "", "nltk", "GRAMMAR"]),
    "--control": _mostly(CONTROLS, ["", "nope", "AttendAndExcite", "attend-and-excite", HALF, "\0", "auto"]),
    "--set": _sets(),
    "--preset": _mostly(["auto", "published", "none"], ["", "best", "AUTO"]),
}
GENERATE: dict[str, Values] = {
    **REQUEST,
    "--out": _mostly(OUTS, BAD_OUTS),
    "--checkpointing": _mostly(["off", "feed_forward", "all", "block"], ["", "some"]),
}
FLAGS = ("--json", "--compare", "--run-model-code", "--nope", "--jsn", "-x", "--help", "--version", "--", "-")
MAPS: dict[str, Values] = {
    **REQUEST,
    "--out": _mostly(
        ["maps", "empty", "é", "./m"], [*BAD_OUTS[:3], "nowhere/a", "a file", "a file/b", "x" * 300, "a\0"]
    ),
    "--words": _mostly(
        ["circle", "red circle", "circle, square", ""], ["dog", ",", ",,a", "\0", HALF, "circle#9", "#"]
    ),
    "--layers": _mostly(LAYERS, BAD_LAYERS),
}
FLOW: dict[str, Values] = {
    **{name: value for name, value in REQUEST.items() if name not in ("--parser", "--control", "--set", "--preset")},
    "--items": _mostly(["circle", "circle,square"], ["dog", ",", "", "\0", HALF, "circle,circle"]),
    "--sense": _mostly(
        ["circle:square=a red square"], ["", "a", "a:b", "a=b", ":=", "circle:circle=x", "circle:dog=x"], 2
    ),
    "--swap": _mostly(["circle=triangle"], ["", "a", "=", "circle=", "dog=cat", "circle=🟥", "circle=the"], 2),
    "--judge": _mostly(
        ["none", "shapes"], ["", "clip", "clip:", "clip:nowhere", "vlm:empty", "x:y", "detector:a\0b"], 3
    ),
    "--seeds": _mostly(["2"], NUMBERS),
    "--confirm": _mostly(["0"], [each for each in NUMBERS if each not in ("1.5",)]),
    "--operator": _mostly(["clean_pad", "drop"], ["", "nope", "DROP"]),
    "--depth": _mostly(["0.5"], NUMBERS),
    "--batch": _mostly(["2", "8"], NUMBERS),
    "--out": _mostly(["flow"], [*BAD_OUTS[:3], "nowhere/a", "a file", "a file/b", "x" * 300, "a\0"]),
}
BENCH: dict[str, Values] = {
    "--suite": _mostly(["shapes", "everyday"], ["", "nope", "t2i_compbench", "geneval", "\0"]),
    "--data": _mostly(["empty"], ["", "nowhere", "a file", "\0"]),
    "--model": SHARED["--model"],
    "--arms": _mostly(
        ["plain", "plain,attend_and_excite", "plain,best-of-2", "plain,random:box_diff"],
        ["", ",", "nope", "plain,plain", "best-of-0", "best-of-x", "random:", "random:nope", "best-of-2:", HALF],
    ),
    "--kinds": _mostly(["pair", "single"], ["", ",", "nope", "pair,pair"]),
    "--split": _mostly(["tune"], ["", "nope"]),
    "--prompts": _mostly(["1", "2"], [*NUMBERS, "pair=1", "pair=", "=", "single=1", "pair=1,pair=2", "pair=²"]),
    "--seeds": _mostly(["1"], NUMBERS),
    "--first-seed": _mostly(["0", "9"], NUMBERS),
    "--steps": _mostly(["1"], NUMBERS),
    "--guidance": _mostly(["1", "3"], NUMBERS),
    "--batch": _mostly(["2"], NUMBERS),
    "--limit": _mostly(["1"], NUMBERS),
    "--shard": _mostly(["1/1"], ["", "0/1", "2/1", "1/0", "a/b", "1", "1/2/3", "²/²", "-1/2", "1/" + "9" * 5000]),
    "--device": SHARED["--device"],
    "--dtype": SHARED["--dtype"],
    "--engine": _mostly(["local"], ["", "slurm"]),
    "--score": _mostly(["nope"], ["", "blip_vqa", "blip_vqa:", "blip_vqa:nowhere", "geneval", "clip_cosine:empty"]),
}


@st.composite
def _options(draw: st.DrawFn, known: dict[str, Values], most: int = 4) -> Line:
    """Some options with values, and now and then a flag, one that is not there, or one without a value."""
    names = draw(st.lists(st.sampled_from(sorted(known)), max_size=most, unique=draw(st.integers(0, 9)) > 0))
    line = [part for name in names for part in (name, draw(known[name]))]
    if draw(st.integers(0, 5)) == 0:
        line.append(draw(st.sampled_from(FLAGS) | st.sampled_from(sorted(known))))
    return line


@st.composite
def _generate(draw: st.DrawFn) -> Line:
    line = draw(_options(GENERATE))
    if "--set" in line and draw(st.booleans()):
        line += ["--control", "attention_segregation"]
    if draw(st.integers(0, 3)) == 0:
        prompt = ["--from", draw(_files("good.png", "good.json", "more.json", "old.json"))]
        prompt += [draw(_mostly(PROMPTS, BAD_PROMPTS))] * (draw(st.integers(0, 9)) == 0)
    else:
        prompt = [draw(_mostly(PROMPTS, BAD_PROMPTS, 8))]
    cheap = [] if "--steps" in line or "--from" in prompt else ["--steps", "1"]
    return ["generate", *prompt, *cheap, *line, *["--compare"] * (draw(st.integers(0, 9)) == 0)]


@st.composite
def _of_prompt(draw: st.DrawFn, command: str, known: dict[str, Values], cheap: dict[str, str]) -> Line:
    line = draw(_options(known))
    short = [part for name, value in cheap.items() if name not in line for part in (name, value)]
    return [command, draw(_mostly(PROMPTS, BAD_PROMPTS, 8)), *short, *line]


@st.composite
def _story(draw: st.DrawFn) -> Line:
    file = draw(_files("story.yaml"))
    known = {**SHARED, "--out": MAPS["--out"]}
    return ["story", file, *draw(_options(known, 2)), *["--check"] * draw(st.integers(0, 1))]


@st.composite
def _bench_run(draw: st.DrawFn) -> Line:
    """A run that is only foretold: plans are read and checked."""
    file = draw(st.just([]) | _files("plan.yaml").map(lambda name: [name]))
    return ["bench", "run", *file, "--out", "run", "--dry-run", *draw(_options(BENCH, 3))]


@st.composite
def _bench(draw: st.DrawFn) -> Line:
    """Commands that read the folder of a run, of which there is none."""
    folder = draw(_mostly(["empty"], ["nowhere", "a file", "", "\0", "x" * 5000, "tiny", "good.png"], 2))
    more = {"score": ["--metric", draw(BENCH["--score"])], "export": ["--arm", "plain", "--layout", "geneval"]}
    command = draw(st.sampled_from(["merge", "sets", "score", "report", "export", "compare", "nope", "speed", "power"]))
    if command == "power":
        names = ["--prompts", "--seeds", "--share", "--sd", "--effect-sd", "--correlation", "--comparisons"]
        return ["bench", command, draw(st.sampled_from(names)), draw(_mostly(["1", "0.5"], NUMBERS, 2))]
    if command == "speed":
        return ["bench", command, draw(st.sampled_from(["nope", "", "\0"]) | ANYTHING)]
    return ["bench", command, folder, *more.get(command, []), *["--out", "there"] * (command == "export")]


@st.composite
def _others(draw: st.DrawFn) -> Line:
    """The small commands, those that are not there, and no command."""
    lines = [
        [], ["--version"], ["--help"], ["nope"], [""], ["generate"], ["maps"], ["story"], ["flow"], ["bench"],
        ["--nope"],
        ["controls"], ["controls", "--json"], ["controls", "attend_and_excite"], ["controls", "nope"], ["controls",
        "\0"],
        ["controls", HALF], ["controls", "a", "b"], ["bench", "--help"], ["bench", "run"], ["bench", "study"], ["maps",
        "-h"],
        ["app", "--dtype", "x"], ["app", "--device", "meta"], ["app", "--checkpointing", "x"], ["app", "--port", "x"],
        ["generate", "--from"], ["generate", "a", "b"], ["doctor", "x"], ["bench", "study", "nope"], ["-c"], ["--",
        "--"],
        ["app", "--port", "99999"], ["app", "--port", "-1"], ["app", "--models", "nowhere"],
    ]  # fmt: skip
    return draw(st.sampled_from(lines) | st.lists(ANYTHING, max_size=3))


def command_lines() -> st.SearchStrategy[Line]:
    """Return command lines, most of them of the commands that make images.

    Returns:
        The strategy.
    """
    maps = _of_prompt("maps", MAPS, {"--steps": "1"})
    flow = _of_prompt("flow", FLOW, {"--steps": "1", "--seeds": "2", "--confirm": "0", "--size": "64x64"})
    kinds = [_generate()] * 8 + [maps] * 3 + [_story(), flow, _bench_run(), _bench(), _others()]
    return st.integers(0, len(kinds) - 1).flatmap(kinds.__getitem__)
