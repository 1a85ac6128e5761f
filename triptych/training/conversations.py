"""Conversations with images, in LLaVA's JSON layout or as `messages`, for the training of VW-LMM."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import load_dataset
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Sampler
from tqdm.auto import trange
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from triptych.modeling.modeling_vw_lmm import VwLmmForCausalLM
from triptych.processing.pictures import to_rgb
from triptych.processing.processing_vw_lmm import VwLmmProcessor
from triptych.training.data import decode_image
from triptych.training.questions import most_common_answer


_IMAGE_LENGTH = 100_000
_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def _messages_of(row: dict[str, Any], index: int) -> list[dict[str, Any]]:
    if row.get("messages"):
        return row["messages"]
    if not row.get("conversations"):
        raise ValueError(f"Row {index} has neither `messages` nor `conversations`, only {', '.join(sorted(row))}.")
    try:
        return [{"role": _ROLES[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
    except KeyError as error:
        raise ValueError(
            f"Row {index}: a turn needs `from` (human, gpt or system) and `value`; {error} is wrong."
        ) from error


def _decode(image: Any, index: int) -> Image.Image:
    if isinstance(image, Image.Image):
        return to_rgb(image, f"image of row {index}")
    return decode_image({"path": str(image), "bytes": None} if isinstance(image, Path) else image, index)


class ConversationDataset(Dataset):
    """Rows with `messages` or LLaVA's `conversations`, and `image` or `images`: paths, or what `datasets` decodes.

    Args:
        rows (`Sequence[dict]`): As above. In the texts every image stands as `<image>`.
        image_folder (`str`, *optional*): Where relative paths start.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], image_folder: str | None = None):
        self.rows = rows
        self.image_folder = Path(image_folder or ".")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        images = row.get("images") or ([row["image"]] if row.get("image") else [])
        images = [self.image_folder / image if isinstance(image, str) else image for image in images]
        return {
            "messages": _messages_of(row, index),
            "images": [_decode(image, index) for image in images],
        }

    def lengths(self) -> list[int]:
        """Length of every conversation, for batches of similar ones: its characters, and as many again as no text has per image.

        No image is looked at: they are counted in the texts.
        """
        rows: Any = self.rows
        if isinstance(rows, datasets.Dataset):
            rows = rows.select_columns([name for name in ("messages", "conversations") if name in rows.column_names])
        lengths = []
        for index, row in enumerate(rows):
            contents = [message["content"] for message in _messages_of(row, index)]
            images = sum(
                content.count("<image>")
                if isinstance(content, str)
                else sum(block.get("type") == "image" for block in content)
                for content in contents
            )
            lengths.append(sum(len(str(content)) for content in contents) + _IMAGE_LENGTH * images)
        return lengths


def load_conversations(name: str, image_folder: str | None = None, split: str = "train") -> ConversationDataset:
    """Load conversations from a JSON or JSON Lines file, or from the Hub.

    Args:
        name (`str`): A file in LLaVA's layout (a list of `{"image": path, "conversations": [...]}`) or with `messages`, or the
            name of a Hub data set with a column of one of these names.
        image_folder (`str`, *optional*): Where the paths of a file's images start. Default: its own folder.
        split (`str`): Of a Hub data set.

    Raises:
        ValueError: If the file is no list of rows.
    """
    path = Path(name)
    if not path.is_file():
        return ConversationDataset(load_dataset(name, split=split))
    text = path.read_text(encoding="utf-8")
    rows = (
        [json.loads(line) for line in text.splitlines() if line.strip()]
        if path.suffix == ".jsonl"
        else json.loads(text)
    )
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{name} must hold a list of conversations, got {type(rows).__name__}.")
    return ConversationDataset(rows, image_folder or str(path.parent))


class QuestionConversations(Dataset):
    """Questions about images (`triptych.training.questions.load_questions`), several of an image as one conversation.

    Args:
        data (`datasets.Dataset`): Rows with `image`, `image_id`, `question`, `answers`.
        questions_per_image (`int`): Most questions of a conversation; more make another one.
    """

    def __init__(self, data: datasets.Dataset, questions_per_image: int = 5):
        self.data = data.cast_column("image", datasets.Image(decode=False))
        groups: dict[str, list[int]] = {}
        for row, image_id in enumerate(data["image_id"]):
            groups.setdefault(image_id, []).append(row)
        self.groups = [
            rows[start : start + questions_per_image]
            for rows in groups.values()
            for start in range(0, len(rows), questions_per_image)
        ]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = [self.data[row] for row in self.groups[index]]
        messages = []
        for turn, row in enumerate(rows):
            question = row["question"] if turn else f"<image>\n{row['question']}"
            messages += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": most_common_answer(row["answers"])},
            ]
        return {"messages": messages, "images": [decode_image(rows[0]["image"], self.groups[index][0])]}

    def lengths(self) -> list[int]:
        """Length of every conversation: the characters of its questions, near enough."""
        questions = list(self.data["question"])
        return [sum(len(questions[row]) for row in rows) for rows in self.groups]


class ConversationMixture(ConcatDataset):
    """Several data sets of conversations as one."""

    def lengths(self) -> list[int]:
        """Length of every conversation, in characters."""
        return [length for dataset in self.datasets for length in dataset.lengths()]  # type: ignore[attr-defined]


class ConversationCollator:
    """Batch conversations through the processor; only answers are supervised.

    Args:
        processor (`VwLmmProcessor`): Of the model.
    """

    def __init__(self, processor: VwLmmProcessor):
        self.processor = processor

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return self.processor.encode_conversations(
            [item["messages"] for item in items],
            images=[item["images"] for item in items],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )


class _LengthGroups(LengthGroupedSampler):
    """transformers' groups in a random order: in its own, long conversations come first and short ones 50 batches later.

    The batch of the longest stays the first, so that memory runs out at once, if it does; what fills no batch is the last.
    """

    def __iter__(self) -> Iterator[int]:
        indices = list(super().__iter__())
        first, *batches = [
            indices[start : start + self.batch_size] for start in range(0, len(indices), self.batch_size)
        ]
        last = batches.pop() if batches and len(batches[-1]) < self.batch_size else []
        order = torch.randperm(len(batches), generator=self.generator).tolist()
        yield from first
        for batch in order:
            yield from batches[batch]
        yield from last


class ConversationTrainer(Trainer):
    """transformers' trainer, which also logs the parts of the loss.

    Data sets that know their `lengths()` are batched by them, so that little is padding.

    Args:
        processing_class (`VwLmmProcessor`): Of the model.
        kwargs: As usual.
    """

    def __init__(self, *, processing_class: VwLmmProcessor, **kwargs: Any):
        collator = ConversationCollator(processing_class)
        super().__init__(data_collator=collator, processing_class=processing_class, **kwargs)  # type: ignore[arg-type]
        self._parts: dict[str, list[torch.Tensor]] = defaultdict(list)  # of the loss, since the last log

    def compute_loss(
        self, model: torch.nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        for name in ("language_loss", "visual_loss"):
            if outputs.get(name) is not None:
                self._parts[name].append(outputs[name].detach())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:  # and not at the end, in the summary of the training
            logs |= {name: torch.stack(values).mean().item() for name, values in self._parts.items()}
            self._parts.clear()
        super().log(logs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        if not hasattr(dataset, "lengths"):
            return super()._get_train_sampler(train_dataset)
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        generator = torch.Generator().manual_seed(self.args.seed)
        return _LengthGroups(batch_size, lengths=dataset.lengths(), generator=generator)


@torch.no_grad()
def ask(
    model: VwLmmForCausalLM,
    processor: VwLmmProcessor,
    questions: Sequence[str],
    images: Sequence[Any] | None,
    batch_size: int = 64,
    max_new_tokens: int = 16,
) -> list[str]:
    """Greedy answers to questions, one image each.

    Args:
        model, processor: A VW-LMM.
        questions (`Sequence[str]`): Questions.
        images (`Sequence[PIL.Image.Image]`, *optional*): Their images; without, the language model alone is asked.
        batch_size, max_new_tokens (`int`): Questions at a time, longest answer in tokens.
    """
    was_training = model.training
    model.eval()
    answers: list[str] = []
    for start in trange(0, len(questions), batch_size, desc="answer", unit="batch", leave=False):
        texts = questions[start : start + batch_size]
        shown = None if images is None else [[images[index]] for index in range(start, start + len(texts))]
        prompts = [
            processor.apply_chat_template(
                [{"role": "user", "content": text if shown is None else f"<image>\n{text}"}],
                add_generation_prompt=True,
            )
            for text in texts
        ]
        inputs = processor(images=shown, text=prompts, padding=True, padding_side="left", return_tensors="pt")
        inputs = inputs.to(model.device)
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)  # type: ignore[misc]
        new = ids[:, inputs["input_ids"].shape[1] :]
        answers += [answer.strip() for answer in processor.batch_decode(new, skip_special_tokens=True)]
    model.train(was_training)
    return answers


__all__ = [
    "ConversationCollator",
    "ConversationDataset",
    "ConversationMixture",
    "ConversationTrainer",
    "QuestionConversations",
    "ask",
    "load_conversations",
]
