"""All three models in lmms-eval (0.7), by the entry point `lmms_eval.models`: `lmms-eval --model triptych --model_args pretrained=...`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages
from tqdm.auto import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

import triptych  # noqa: F401  (makes the models known)
from triptych.evaluation.generator import Generator
from triptych.hardware import prepare_for_inference


MANIFEST = ModelManifest(
    "triptych",
    simple_class_path="triptych.harnesses.lmms_eval.TriptychSimple",
    chat_class_path="triptych.harnesses.lmms_eval.TriptychChat",
)
# What of a task's `generation_kwargs` `generate` takes.
_PASSED_ON = ("max_new_tokens", "num_beams", "do_sample", "temperature", "top_p", "top_k", "length_penalty")


class TriptychSimple(lmms):
    """Documents as pictures and a question. VW-LMM and MaMMUT answer it; GRR-CoCa, which reads none, captions the picture.

    Args:
        pretrained (`str`): Folder or Hub name of a checkpoint.
        batch_size (`int`): Documents at a time.
        device (`str`, *optional*): Of the model. Default: the GPU of this process, if there is one.
        captions (`bool`): Let MaMMUT caption pictures, too, whatever the question: for tasks that ask for captions in words.

    Raises:
        ValueError: If the model does not write.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        captions: bool | str = False,
    ):
        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        model: Any = AutoModelForImageTextToText.from_pretrained(pretrained)
        model = prepare_for_inference(model) if device is None else model.to(device).eval()
        self.generator = Generator(model, AutoProcessor.from_pretrained(pretrained))
        self.batch_size = int(batch_size)
        self.only_captions = not self.generator.reads_questions or str(captions).lower() == "true"

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """A text for every request, in batches of requests with the same options."""

        def write(batch: list[tuple]) -> list[str]:
            options = dict(batch[0][self._options_at])
            return self._write([self._row(arguments) for arguments in batch], options)

        return self._map(requests, write, lambda arguments: str(arguments[self._options_at]), "generate")

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """How unlikely every continuation is, of which lmms-eval takes the lowest, and whether it is the likeliest one.

        Version 0.7.3 makes a string of a pair of numbers, on which its choices then fail; what is in a `GenerationResult` it leaves alone.
        """

        def score(batch: list[tuple]) -> list[GenerationResult]:
            rows = []
            for context, continuation, doc_to_visual, number, task, split in batch:
                document = self.task_dict[task][split][number]
                text = continuation if isinstance(continuation, str) else continuation(document)
                row = _row(doc_to_visual(document), context)
                if self.only_captions:
                    row.pop("question")
                rows.append({**row, "answer": text.strip()})
            pairs: list[Any] = [(-value, is_greedy) for value, is_greedy in self.generator.log_likelihoods(rows)]
            return [GenerationResult(pair) for pair in pairs]

        return self._map(requests, score, lambda arguments: "", "loglikelihood")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("These models answer one question at a time.")

    _options_at = 1

    def _row(self, arguments: tuple) -> dict[str, Any]:
        context, _, doc_to_visual, number, task, split = arguments
        return _row(doc_to_visual(self.task_dict[task][split][number]), context)

    def _write(self, rows: list[dict[str, Any]], options: dict[str, Any]) -> list[str]:
        stops = options.get("until") or []
        stops = [stops] if isinstance(stops, str) else stops
        given = {name: options[name] for name in _PASSED_ON if options.get(name) is not None}
        if not given.get("temperature"):  # 0, or not given: greedy
            given = {name: value for name, value in given.items() if name not in ("temperature", "top_p", "top_k")}
            given["do_sample"] = False
        if self.only_captions:
            texts = self.generator.captions([_only_image(row) for row in rows], **given)
        else:
            texts = self.generator.answers(rows, **given)
        for stop in filter(None, stops):
            texts = [text.partition(stop)[0] for text in texts]
        return texts

    def _map(
        self,
        requests: list[Instance],
        function: Callable[[list[tuple]], list[Any]],
        kind: Callable[[tuple], str],
        description: str,
    ) -> list[Any]:
        """Results in the order of the requests, which are done in batches of one kind."""
        results: list[Any] = [None] * len(requests)
        bar = tqdm(total=len(requests), desc=description, disable=self.rank != 0)
        for numbers in _batches([kind(request.args) for request in requests], self.batch_size):
            found = function([requests[number].args for number in numbers])
            for number, result in zip(numbers, found, strict=True):
                results[number] = result
            bar.update(len(numbers))
        bar.close()
        return results

    @property
    def device(self) -> torch.device:
        return self.generator.model.device

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._world_size


class TriptychChat(TriptychSimple):
    """Documents as messages, of which a user's pictures and texts count. Arguments are those of [`TriptychSimple`]."""

    is_simple = False
    _options_at = 2

    def _row(self, arguments: tuple) -> dict[str, Any]:
        _, doc_to_messages, _, number, task, split = arguments
        messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][number]))
        images, videos, _ = messages.extract_media()
        texts = [part.text for each in messages.messages for part in each.content if part.type == "text"]
        return _row([*images, *videos], "\n".join(texts))


def _row(visuals: Sequence[Any], context: str) -> dict[str, Any]:
    """A row for [`Generator`]: a clip is a path."""
    question = context.replace("<image>", "").strip()
    clips = [visual for visual in visuals if isinstance(visual, str)]
    if clips:
        return {"video": clips[0], "question": question}
    if not visuals:
        return {"question": question}
    return {"image": visuals[0] if len(visuals) == 1 else list(visuals), "question": question}


def _only_image(row: dict[str, Any]) -> Any:
    image = row.get("image")
    if image is None or isinstance(image, list):
        raise ValueError("A model that captions sees one picture at a time; this document has none, or several.")
    return image


def _batches(kinds: list[str], size: int) -> Iterator[list[int]]:
    """Numbers of what is of one kind, so many at a time."""
    groups: dict[str, list[int]] = {}
    for number, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(number)
    for numbers in groups.values():
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]


__all__ = ["MANIFEST", "TriptychChat", "TriptychSimple"]
