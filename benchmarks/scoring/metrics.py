"""Metrics of an image and its prompt, each with its variant in its name.

A number that is not computed as in a paper has no right to the paper's name: the name says which checkpoint, which
chunks, which question.

Legend: ``I`` image, ``C`` channels, ``V`` entry of the vocabulary.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable

import torch
from PIL import Image

from t2ictl.benchmarks.scoring.base import Metric, Score, short
from t2ictl.benchmarks.scoring.captions import CaptionCosine
from t2ictl.benchmarks.scoring.geneval import GenEval
from t2ictl.errors import BadSetting
from t2ictl.evaluation.judges.loading import loaded

__all__ = ["METRICS", "BlipVqa", "ClipCosine", "VqaScore", "blip_question", "check_metric", "open_metric"]

# T2I-CompBench, BLIPvqa_eval: default number of chunks since 2023-12-02; chunks that name no object since 2024-01-28.
CHUNKS = 8
NO_OBJECTS = frozenset({"top", "the side", "the left", "the right"})
# BLIP's own preparation of a question.
PUNCTUATION, MOST_WORDS, MOST_TOKENS, SIDE = re.compile(r"[.!\"()*#:;~]"), 50, 35, 480


def blip_question(chunk: str) -> str:
    """Prepare a question as BLIP's own code does.

    Args:
        chunk: a noun chunk.

    Returns:
        The question: lower case, listed marks taken out, at most 50 words; the question mark stays.

    Example:
        >>> blip_question('The "Green" bench.')
        'the green bench?'
    """
    text = PUNCTUATION.sub("", f"{chunk}?".lower()).rstrip(" ")
    return " ".join(text.split(" ")[:MOST_WORDS])


class BlipVqa:
    """BLIP-VQA of T2I-CompBench: the product of the probabilities that each noun chunk is there.

    For each of the first eight noun chunks ``p = P(yes) / (P(yes) + P(no))`` for "CHUNK?", from the first token
    of the answer, rounded to four places; ``score = product of p``. Images are squashed to 480 x 480.

    The original puts the token [ENC] first in the question; transformers does not, so it is done here.

    Args:
        model: folder or hub id of a ``BlipForQuestionAnswering``.
        chunks: ``"spacy"`` (as the paper) or ``"grammar"`` (offline; another variant, and its name says so).
        device: where to compute.

    Reference:
        Huang, Sun, Xie, Li, Liu: "T2I-CompBench: A Comprehensive Benchmark for Open-world Compositional Text-to-image
        Generation", NeurIPS 2023, arXiv 2307.06350, section 4.
    """

    def __init__(self, model: str, *, chunks: str = "spacy", device: str = "cpu") -> None:
        import transformers

        from t2ictl.prompts.grammar import parser_version

        version = parser_version(chunks)
        self._model, self._processor = loaded(transformers.BlipForQuestionAnswering, model, device)
        self._chunks = chunks
        self.name = f"blip_vqa[np{CHUNKS},{chunks},{short(model)}]"
        self.facts = {"checkpoint": model, "chunks": chunks, "parser": version, "side": SIDE}
        tokens = self._processor.tokenizer
        self._yes, self._no = (tokens(word, add_special_tokens=False).input_ids[0] for word in ("yes", "no"))

    def chunks(self, prompt: str) -> list[str]:
        """Return the chunks that are asked for, in the order of the prompt."""
        found = _spacy_chunks(prompt) if self._chunks == "spacy" else _grammar_chunks(prompt)
        return [chunk for chunk in found if chunk.lower() not in NO_OBJECTS][:CHUNKS]

    def __call__(self, image: Image.Image, prompt: str) -> Score:
        """Score one image; a prompt without chunks has the score 1."""
        parts: dict[str, float] = {}
        value = 1.0
        states = self._image(image)
        for chunk in self.chunks(prompt):
            answer = round(self._answer(states, blip_question(chunk)), 4)
            parts[chunk] = answer
            value *= answer
        return Score(value=value, parts=parts)

    @torch.no_grad()
    def _image(self, image: Image.Image) -> torch.Tensor:
        square = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        side = self._model.config.vision_config.image_size
        more = {"do_resize": False} if side == SIDE else {"size": {"height": side, "width": side}}
        pixels = self._processor.image_processor(square, return_tensors="pt", **more).pixel_values
        states: torch.Tensor = self._model.vision_model(pixel_values=pixels.to(self._model.device))[0]
        return states

    @torch.no_grad()
    def _answer(self, states: torch.Tensor, question: str) -> float:
        tokens = self._processor.tokenizer(question, truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
        ids = tokens.input_ids.to(states.device)
        ids[:, 0] = self._model.decoder_start_token_id + 1  # [ENC], the token behind [DEC]
        asked = self._model.text_encoder(
            input_ids=ids,
            attention_mask=tokens.attention_mask.to(states.device),
            encoder_hidden_states=states,
            encoder_attention_mask=torch.ones(states.shape[:-1], dtype=torch.long, device=states.device),
        )[0]
        first = torch.full((1, 1), self._model.decoder_start_token_id, device=states.device)
        logits_V = self._model.text_decoder(
            input_ids=first,
            encoder_hidden_states=asked,
            encoder_attention_mask=tokens.attention_mask.to(states.device),
        ).logits[0, -1]
        yes, no = logits_V.float().softmax(dim=-1)[[self._yes, self._no]].tolist()
        return float(yes / (yes + no))


class ClipCosine:
    """CLIP's cosine of image and prompt, as it is: not scaled, not cut off at 0.

    Args:
        model: folder or hub id of a ``CLIPModel``.
        device: where to compute.
    """

    def __init__(self, model: str, *, device: str = "cpu") -> None:
        import transformers

        self._model, self._processor = loaded(transformers.CLIPModel, model, device)
        self.name, self.facts = f"clip_cosine[{short(model)}]", {"checkpoint": model}

    @torch.no_grad()
    def __call__(self, image: Image.Image, prompt: str) -> Score:
        """Score one image."""
        inputs = self._processor(
            text=[prompt], images=image.convert("RGB"), return_tensors="pt", padding=True, truncation=True
        )
        made = self._model(**inputs.to(self._model.device))
        return Score(value=float(torch.nn.functional.cosine_similarity(made.image_embeds, made.text_embeds)[0]))


class VqaScore:
    """``P(yes)`` of ``P(yes) + P(no)`` for the question of VQAScore, by any image-text-to-text model.

    The paper's judge is CLIP-FlanT5-XXL; with another model this is another metric, and its name says which.

    Args:
        model: folder or hub id of the model.
        device: where to compute.

    Reference:
        Lin et al.: "Evaluating Text-to-Visual Generation with Image-to-Text Generation", ECCV 2024, arXiv 2404.01291.
    """

    def __init__(self, model: str, *, device: str = "cpu") -> None:
        from t2ictl.evaluation.judges.questions import YesNoJudge

        question = 'Does this figure show "{thing}"? Please'
        self._judge = YesNoJudge(model, question=question, device=device)
        self.name, self.facts = f"vqascore[{short(model)}]", {"checkpoint": model, "question": question}

    def __call__(self, image: Image.Image, prompt: str) -> Score:
        """Score one image."""
        return Score(value=float(self._judge([image], [prompt])[0, 0]))


METRICS: dict[str, Callable[..., Metric]] = {
    "blip_vqa": BlipVqa,
    "clip_cosine": ClipCosine,
    "vqascore": VqaScore,
    "caption_cosine": CaptionCosine,
    "geneval": GenEval,
}


#: Metrics of two models, and which.
OF_TWO = {"caption_cosine": "BLIP,CLIP", "geneval": "DETECTOR,CLIP"}


def open_metric(text: str, device: str = "cpu", data: str | None = None) -> Metric:
    """Open a metric by name.

    Args:
        text: ``"clip_cosine:MODEL"``, ``"vqascore:MODEL"``, ``"blip_vqa:MODEL"``, or ``"blip_vqa/grammar:MODEL"`` for
            chunks that need no spaCy; ``"caption_cosine:BLIP,CLIP"``, ``"geneval:DETECTOR,CLIP"``.
        device: where to compute.
        data: folder with the files of published sets, for metrics whose prompts have more than a text.

    Returns:
        The metric.

    Raises:
        BadSetting: for an unknown metric, or one without a model.
        MissingExtra: if spaCy is wanted and not installed.
    """
    check_metric(text, data)
    name, variant, model = _read(text)
    more = {"chunks": variant} if variant else {}
    more |= {"data": data} if data is not None and name == "geneval" else {}
    return METRICS[name](model, device=device, **more)


def check_metric(text: str, data: str | None = None) -> None:
    """Check what can be checked of a metric without its model.

    Args:
        text: as for :func:`open_metric`.
        data: folder with the files of published sets.

    Raises:
        BadSetting: for an unknown metric, or one without a model or without its data.
        MissingExtra: if spaCy is wanted and not installed.

    Example:
        >>> check_metric("clip_cosine:openai/clip-vit-base-patch32")
    """
    name, variant, model = _read(text)
    if name == "blip_vqa":
        importlib.import_module("t2ictl.prompts.grammar").parser_version(variant or "spacy")
    if name in OF_TWO and not all(model.partition(",")[::2]):
        raise BadSetting(f"{name} needs two models.", f"Write {name}:{OF_TWO[name]}.")
    if name == "geneval" and data is None:
        raise BadSetting("GenEval's clauses are in its metadata.", "Say where they are: --data FOLDER.")


def _read(text: str) -> tuple[str, str, str]:
    """Name, variant and model."""
    kind, _, model = text.partition(":")
    name, _, variant = kind.partition("/")
    if name not in METRICS or not model or (variant and name != "blip_vqa"):
        raise BadSetting(f"There is no metric {text!r}.", f"Write one of {', '.join(METRICS)}, and :FOLDER behind it.")
    return name, variant, model


def _spacy_chunks(prompt: str) -> list[str]:
    load = importlib.import_module("t2ictl.prompts.grammar").load_spacy
    return [chunk.text for chunk in load()(prompt).noun_chunks]


def _grammar_chunks(prompt: str) -> list[str]:
    find = importlib.import_module("t2ictl.prompts.noun_phrases").noun_phrases
    return [each.text for each in find(prompt) if each.level == 0]
