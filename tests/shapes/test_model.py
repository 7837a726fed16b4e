from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from t2ictl.shapes import judge, model_path

FILES = [path for path in model_path().rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(str(model_path()))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _generate(pipe: Any, prompt: str, seed: int, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, num_inference_steps=20, guidance_scale=4.0, generator=generator, **options).images[0]


def test_package_is_small() -> None:
    sizes = [path.stat().st_size for path in FILES]
    assert sum(sizes) <= 12e6
    assert max(sizes) < 8e6


def test_folder_is_plain_diffusers_and_names_no_machine() -> None:
    index = json.loads((model_path() / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["requires_safety_checker"] is False
    assert index["safety_checker"] == [None, None]
    for path in FILES:
        if path.suffix == ".json":
            assert "_name_or_path" not in path.read_text(encoding="utf-8")


def test_loads_in_single_precision(pipe: Any) -> None:
    for model in (pipe.unet, pipe.vae, pipe.text_encoder):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert isinstance(pipe.scheduler, DDIMScheduler)
    assert pipe.scheduler.config.prediction_type == "v_prediction"


def test_geometry(pipe: Any) -> None:
    assert pipe.vae_scale_factor == 4
    assert pipe.unet.config.sample_size == 16
    assert pipe.tokenizer.model_max_length == pipe.text_encoder.config.max_position_embeddings == 24
    layers = [name for name in pipe.unet.attn_processors if "attn2" in name]
    assert len(layers) == 7
    assert {model.heads for name, model in pipe.unet.named_modules() if name.endswith("attn2")} == {2}


def test_single_objects_come_out_right(pipe: Any) -> None:
    prompts = [
        "a red circle",
        "a blue square",
        "a green star",
        "a yellow ring",
        "a striped purple cross",
        "a cyan triangle",
    ]
    verdicts = [judge(_generate(pipe, prompt, seed), prompt) for seed, prompt in enumerate(prompts)]
    assert sum(verdict.is_strict for verdict in verdicts) >= 5


def test_same_seed_same_image(pipe: Any) -> None:
    first, second = (_generate(pipe, "a red circle", 3) for _ in range(2))
    assert first.size == (64, 64)
    assert np.array_equal(np.asarray(first), np.asarray(second))


def test_wider_canvas_runs(pipe: Any) -> None:
    image = _generate(pipe, "a red circle and a blue square", 0, height=64, width=96)
    assert image.size == (96, 64)


def test_import_is_light() -> None:
    heavy = "[m for m in ('torch', 'diffusers', 'scipy') if m in sys.modules]"
    code = f"import sys, t2ictl.shapes as s; s.model_path(); print({heavy})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_judging_needs_no_torch() -> None:
    code = (
        "import sys, numpy as np\n"
        "from t2ictl.shapes import judge\n"
        "print(judge(np.full((64, 64, 3), 238, np.uint8), 'a star').failure, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["missing", "False"]
