"""Pipelines that travel with a checkpoint: two that transformers 5 dropped, and zero-shot classification with sigmoid scores."""

from pathlib import Path
from types import GeneratorType

import torch
from PIL import Image
from transformers import GenerationConfig
from transformers.pipelines import Pipeline, ZeroShotImageClassificationPipeline

from .transformers_versions import pipeline_generate_kwargs


class _GeneratingPipeline(Pipeline):
    """One image and one text per item; the processor decides how they become a prompt."""

    _load_processor = True
    _load_tokenizer = _load_image_processor = _load_video_processor = _load_feature_extractor = False
    _pipeline_calls_generate = True
    _default_generation_config = GenerationConfig(max_new_tokens=32)
    # What a model that chats is asked where the caller asks nothing.
    default_question = "What is this?"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not self.model.can_generate():
            raise ValueError(
                f"{type(self).__name__} needs a model that generates text, got a {type(self.model).__name__}. Load it with "
                "AutoModelForImageTextToText."
            )
        self.chats = getattr(self.processor, "chat_template", None) is not None
        if self.chats:
            self.tokenizer.padding_side = "left"  # answers begin behind the prompt, in every row of a batch

    def _encode(self, image, text: str | None, is_question: bool, timeout: float | None):
        image = self.processor.to_rgb(image, timeout=timeout)
        if self.chats:
            content = [{"type": "image", "image": image}, {"type": "text", "text": text or self.default_question}]
            inputs = self.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        elif is_question and hasattr(self.processor, "question_template"):
            inputs = self.processor(images=image, questions=[text], return_tensors="pt")
        else:
            inputs = self.processor(images=image, text=text, return_tensors="pt")
        return inputs.to(self.dtype)

    def _generate(self, inputs, generate_kwargs: dict | None, **overrides):
        room = getattr(self.model.config, "max_position_embeddings", None)
        if room is not None:
            room -= int(inputs["attention_mask"].sum(-1).max()) if "attention_mask" in inputs else 1
        kwargs = pipeline_generate_kwargs(self, generate_kwargs or {}, room, return_dict_in_generate=True, **overrides)
        return self.model.generate(**inputs, **kwargs)

    @staticmethod
    def _is_image(item) -> bool:
        return isinstance(item, (str, Path, Image.Image)) or getattr(item, "ndim", None) in (2, 3)

    def _stream(self, items):
        """A data set or a column of one as a generator, which pipelines know; an array of images as a list."""
        if self._is_image(items) or isinstance(items, (dict, GeneratorType)):
            return items
        if getattr(items, "ndim", None) == 0 or not (hasattr(items, "__iter__") or hasattr(items, "__getitem__")):
            raise ValueError(f"`inputs` must be an image, or several, got {items!r}.")
        if not isinstance(items, (list, tuple)) and not hasattr(items, "ndim"):
            return (item for item in items)
        if len(items) == 0:
            raise ValueError("`inputs` is empty; expected at least one image.")
        return list(items)

    def _decode(self, ids) -> list[str]:
        return [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]

    @staticmethod
    def _generation_options(max_new_tokens: int | None, generate_kwargs: dict | None) -> dict:
        if max_new_tokens is not None and "max_new_tokens" in (generate_kwargs or {}):
            raise ValueError("`max_new_tokens` is given twice: by itself and in `generate_kwargs`.")
        options = dict(generate_kwargs or {})
        if max_new_tokens is not None:
            options["max_new_tokens"] = max_new_tokens
        return options


class ImageToTextPipeline(_GeneratingPipeline):
    """`pipe(image)` -> `[{"generated_text": ...}]`, as `pipeline("image-to-text")` of transformers 4.

    A `prompt` is the beginning of the caption, and part of it; a model that chats takes it as the question.
    """

    def _sanitize_parameters(self, prompt=None, max_new_tokens=None, generate_kwargs=None, timeout=None):
        preprocess = {key: value for key, value in (("prompt", prompt), ("timeout", timeout)) if value is not None}
        options = self._generation_options(max_new_tokens, generate_kwargs)
        return preprocess, {"generate_kwargs": options} if options else {}, {}

    def __call__(self, inputs=None, **kwargs):
        """Caption images.

        Args:
            inputs: An image, or a list, generator or data set of them, each as the processor's `to_rgb` takes it: a PIL image,
                array, path, URL or base64 text.
            prompt (`str`, *optional*), max_new_tokens (`int`, *optional*), generate_kwargs (`dict`, *optional*): As above,
                and everything that `generate` accepts.
            timeout (`float`, *optional*): Seconds to wait for a URL.

        Returns:
            `list[dict]` for an image, a list of those for several: `generated_text` of every sequence.
        """
        inputs = kwargs.pop("images", inputs)
        if inputs is None:
            raise ValueError("`inputs` is missing: an image, or several.")
        return super().__call__(self._stream(inputs), **kwargs)

    def preprocess(self, image, prompt=None, timeout=None):
        return self._encode(image, prompt, is_question=False, timeout=timeout)

    def _forward(self, model_inputs, generate_kwargs=None):
        ids = self._generate(model_inputs, generate_kwargs).sequences
        if self.chats:
            ids = ids[:, model_inputs["input_ids"].shape[1] :]
        return {"ids": ids.view(len(model_inputs["pixel_values"]), -1, ids.shape[1])}  # (items, sequences, length)

    def postprocess(self, model_outputs):
        return [{"generated_text": text} for text in self._decode(model_outputs["ids"][0])]


class VisualQuestionAnsweringPipeline(_GeneratingPipeline):
    """`pipe(image=..., question=...)` -> `[{"answer": ..., "score": ...}]`, as in transformers 4.

    The score is the probability of the answer: the product over its tokens, the end included.
    """

    _non_generation_params = ("top_k",)

    def _sanitize_parameters(self, top_k=None, max_new_tokens=None, generate_kwargs=None, timeout=None):
        preprocess = {} if timeout is None else {"timeout": timeout}
        options = self._generation_options(max_new_tokens, generate_kwargs)
        forward = {"generate_kwargs": options} if options else {}
        if top_k is not None:
            if top_k < 1:
                raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
            forward["top_k"] = top_k
        return preprocess, forward, {}

    def __call__(self, image=None, question=None, **kwargs):
        """Answer questions about images.

        Args:
            image: An image, as `to_rgb` takes it; a list of them (every question is asked of each); or rows with `image`
                and `question`: one, a list, a generator or a data set.
            question (`str` or `list[str]`, *optional*): One or several.
            top_k (`int`, *optional*, defaults to 1): Answers per question, found by a beam search.
            max_new_tokens (`int`, *optional*), generate_kwargs (`dict`, *optional*): As `generate` takes them.
            timeout (`float`, *optional*): Seconds to wait for a URL.

        Returns:
            `list[dict]` for one question, a list of those for several: `answer` and `score`, the best first.
        """
        if image is None:
            raise ValueError("`image` is missing.")
        if question is not None and not isinstance(question, (str, list, tuple)):
            raise ValueError(f"`question` must be a text or a list of texts, got {question!r}.")
        one_image, one_question = self._is_image(image), isinstance(question, str)
        if question is None:
            first = image[0] if isinstance(image, (list, tuple)) and image else image
            is_row = not self._is_image(first)
            if not is_row or (isinstance(first, dict) and not {"image", "question"} <= first.keys()):
                raise ValueError("`question` is missing: pass it beside `image`, or rows with `image` and `question`.")
            rows = image
        elif one_image and one_question:
            rows = {"image": image, "question": question}
        else:
            images, questions = [image] if one_image else self._stream(image), [question] if one_question else question
            rows = [{"image": one, "question": text} for one in images for text in questions]
            if not rows:
                raise ValueError("`image` or `question` is empty; expected at least one of each.")
        return super().__call__(self._stream(rows), **kwargs)

    def preprocess(self, inputs, timeout=None):
        return self._encode(inputs["image"], inputs["question"], is_question=True, timeout=timeout)

    def _forward(self, model_inputs, generate_kwargs=None, top_k=1):
        beams = {"num_beams": top_k, "num_return_sequences": top_k} if top_k > 1 else {}
        options = {**beams, **(generate_kwargs or {})}
        outputs = self._generate(model_inputs, options, output_logits=True)
        steps = self.model.compute_transition_scores(
            outputs.sequences, outputs.logits, getattr(outputs, "beam_indices", None), normalize_logits=True
        )  # (items x sequences, new tokens)
        new = outputs.sequences[:, -steps.shape[1] :]
        ends = torch.isin(new, torch.tensor(self._end_ids(), device=new.device))
        behind_end = ends.cumsum(-1) - ends.int() > 0
        scores = steps.masked_fill(behind_end, 0.0).sum(-1).exp()
        items = len(model_inputs["pixel_values"])
        return {"ids": new.view(items, -1, new.shape[1]), "scores": scores.view(items, -1)}

    def _end_ids(self) -> list[int]:
        end = self.model.generation_config.eos_token_id
        return [end] if isinstance(end, int) else list(end or [])

    def postprocess(self, model_outputs):
        answers = zip(self._decode(model_outputs["ids"][0]), model_outputs["scores"][0].tolist(), strict=True)
        rows = [{"answer": answer, "score": score} for answer, score in answers]
        return sorted(rows, key=lambda row: -row["score"])


class SigmoidZeroShotImageClassificationPipeline(ZeroShotImageClassificationPipeline):
    """Zero-shot classification for models trained with a sigmoid loss: every label has a probability of its own."""

    def postprocess(self, model_outputs):
        logits = model_outputs["logits"][0]
        scores = zip(logits.sigmoid().tolist(), model_outputs["candidate_labels"], strict=True)
        return [{"score": score, "label": label} for score, label in sorted(scores, key=lambda pair: -pair[0])]


# By the names of the tasks, which transformers 5 no longer has.
DROPPED_TASKS = {"image-to-text": ImageToTextPipeline, "visual-question-answering": VisualQuestionAnsweringPipeline}

__all__ = [
    "DROPPED_TASKS",
    "ImageToTextPipeline",
    "SigmoidZeroShotImageClassificationPipeline",
    "VisualQuestionAnsweringPipeline",
]
