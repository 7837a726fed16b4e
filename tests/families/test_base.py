"""What families have in common: the negative prompts of a call."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from t2ictl.families.arguments import negative_texts


@pytest.mark.parametrize(
    ("arguments", "prompts", "expected"),
    [
        ({}, 2, ()),
        ({"negative_prompt": None}, 1, ()),
        ({"negative_prompt": "fog"}, 1, (("fog", "fog"),)),
        ({"negative_prompt": "fog"}, 3, (("fog", "fog"),) * 3),
        ({"negative_prompt": ["fog", "mud"]}, 2, (("fog", "fog"), ("mud", "mud"))),
        ({"negative_prompt": "fog", "negative_prompt_2": "mud"}, 2, (("fog", "mud"),) * 2),
        ({"negative_prompt": ["fog", "ice"], "negative_prompt_2": "mud"}, 2, (("fog", "mud"), ("ice", "mud"))),
        ({"negative_prompt": "fog", "negative_prompt_2": ["mud", "ice"]}, 2, (("fog", "mud"), ("fog", "ice"))),
        ({"negative_prompt": "fog", "negative_prompt_2": ""}, 1, (("fog", "fog"),)),
        ({"negative_prompt": "fog", "negative_prompt_embeds": torch.zeros(1)}, 1, ()),
        ({"negative_prompt": ["fog", "mud"]}, 3, ()),  # the pipeline itself refuses it
        ({"negative_prompt": ""}, 1, (("", ""),)),
    ],
    ids=str,
)
def test_negative_prompts_one_for_each_prompt(arguments: Any, prompts: int, expected: Any) -> None:
    assert negative_texts(arguments, prompts) == expected
