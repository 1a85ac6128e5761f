"""Captions, answers and likelihoods of texts, of any model that looks at a picture or clip and writes."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import ProcessorMixin

from triptych.data.questions import QuestionCollator


class Generator:
    """A model that writes: one of this package, or of transformers (BLIP, Llava and their like).

    Args:
        model (`PreTrainedModel`): With `generate`, in eval mode.
        processor (`ProcessorMixin`): Of the model.
        device (*optional*): Where it computes, if its weights are kept elsewhere, as a training's may be. Default: where they are.

    Raises:
        ValueError: If the model does not generate.
    """

    def __init__(self, model: Any, processor: ProcessorMixin, device: torch.device | None = None):
        if not (hasattr(model, "generate") and model.can_generate()):
            raise ValueError(f"A {model.config.model_type} ({type(model).__name__}) writes no text.")
        self.model, self.device = model, device or model.device
        self.processor: Any = processor
        self.chats = getattr(processor, "chat_template", None) is not None
        self.reads_questions = self.chats or hasattr(processor, "question_template")

    def captions(
        self, visuals: Sequence[Image.Image | str], kind: str = "image", prompt: str | None = None, **options: Any
    ) -> list[str]:
        """A caption of every picture or clip.

        Args:
            visuals (`Sequence`): Pictures, or paths of clips.
            kind (`"image"` or `"video"`): Which of both.
            prompt (`str`, *optional*): What captions begin with, and keep; of a model that chats what it is asked, which it needs.
            options: Of `generate`. Default: greedy.

        Raises:
            ValueError: If the model needs a prompt, or sees no clips.
        """
        if self.chats:
            if prompt is None:
                raise ValueError(
                    "A model that chats captions nothing unasked: give a `prompt` such as 'Describe the image.'"
                )
            return self.answers([{kind: visual, "question": prompt} for visual in visuals], **options)
        text = {} if prompt is None else {"text": [prompt] * len(visuals)}
        batch = self.processor(**{f"{kind}s": list(visuals)}, **text, return_tensors="pt")
        return self._decode(self._generate(batch, options))

    def answers(self, rows: Sequence[dict[str, Any]], **options: Any) -> list[str]:
        """An answer to every row's `question` about its `image` (one, or several of a model that chats) or `video`.

        Args:
            rows (`Sequence[dict]`): Of a model that chats, one without a picture asks the language model alone.
            options: Of `generate`. Default: greedy.

        Raises:
            ValueError: If the model reads no questions.
        """
        batch = QuestionCollator(self.processor, with_answers=False)(rows)
        new = self._generate(batch, options)[:, batch["input_ids"].shape[1] :]
        return self._decode(new)

    @torch.no_grad()
    def log_likelihoods(self, rows: Sequence[dict[str, Any]]) -> list[tuple[float, bool]]:
        """How likely the model says every row's `answer`, the end of it included, to its question; or, without one, as a caption.

        Args:
            rows (`Sequence[dict]`): As of [`answers`], and `answer`; all with a `question`, or none.

        Returns:
            `list[tuple[float, bool]]`: The sum of the tokens' logarithms, and whether every token is the likeliest one.

        Raises:
            ValueError: If the model is another package's, or reads no questions and is asked one.
        """
        if not (hasattr(self.processor, "encode_conversations") or hasattr(self.model, "contrastive_losses")):
            raise ValueError(f"Likelihoods need a mammut, grr_coca or vw_lmm, not a {self.model.config.model_type}.")
        if "question" in rows[0] and not self.reads_questions:
            raise ValueError(f"A {self.model.config.model_type} reads no questions; take a mammut or a vw_lmm.")
        if self.reads_questions and "question" in rows[0]:
            batch = QuestionCollator(self.processor)(rows)
            if "image_index" in batch:  # a picture per text, or the contrastive loss refuses; it is computed beside
                index = batch.pop("image_index")
                for name in batch.keys() & {"pixel_values", "pixel_values_videos"}:
                    batch[name] = batch[name][index]
        else:
            captions = [row["answer"] for row in rows]
            batch = self.processor(
                images=[row["image"] for row in rows], text=captions, padding=True, return_tensors="pt"
            )
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        batch = batch.to(self.device).to(self.model.dtype)
        kept = {} if self.chats else {"skip_logits": False}
        logits = self.model(**batch, **kept).logits[:, :-1].float()  # (rows, tokens - 1, vocabulary)
        targets = batch["labels"][:, 1:]
        supervised = targets != -100
        targets = targets.masked_fill(~supervised, 0)
        found = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        is_greedy = (logits.argmax(-1) == targets) | ~supervised
        sums = found.masked_fill(~supervised, 0.0).sum(-1)
        return list(zip(sums.tolist(), is_greedy.all(-1).tolist(), strict=True))

    @torch.no_grad()
    def _generate(self, batch: Any, options: dict[str, Any]) -> torch.Tensor:
        batch = batch.to(self.device).to(self.model.dtype)  # the pixels; ids stay whole numbers
        room = getattr(self.model.config, "max_position_embeddings", None)
        if room is not None and options.get("max_new_tokens") is not None:
            # Benchmarks ask for more than a small context holds.
            taken = int(batch["attention_mask"].sum(-1).max()) if "attention_mask" in batch else 1
            options = {**options, "max_new_tokens": min(options["max_new_tokens"], max(1, room - taken))}
        return self.model.generate(**batch, **{"num_beams": 1, "do_sample": False, **options})

    def _decode(self, ids: torch.Tensor) -> list[str]:
        return [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]


__all__ = ["Generator"]
