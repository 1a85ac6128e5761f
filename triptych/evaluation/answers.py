"""Answers of a model to questions about images or clips, and how many of them are right."""

from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset as Rows
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from triptych.evaluation.generator import Generator
from triptych.evaluation.sharing import evaluating, map_rows, shares_weights
from triptych.evaluation.vqa_accuracy import VqaAccuracy


def answer_questions(
    model: torch.nn.Module,
    dataset: Dataset,
    processor: ProcessorMixin,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int = 0,
    max_new_tokens: int = 10,
) -> list[str]:
    """Answer every question of a data set greedily; processes share the work.

    Args:
        model: MaMMUT, VW-LMM, or a `PeftModel` around one.
        dataset: Rows with `question` and `image` or `video`; of VW-LMM, rows without an image ask the language model alone.
        processor: Of the model.
        accelerator, batch_size, num_workers: As of [`map_rows`].
        max_new_tokens (`int`): Longest answer.

    Returns:
        `list[str]`: One answer per row, in order, on every process.
    """
    answerer: Any = accelerator.unwrap_model(model)
    generator = Generator(answerer, processor, accelerator.device)

    def answer(rows: list[dict[str, Any]]) -> list[str]:
        with accelerator.autocast():
            return generator.answers(rows, max_new_tokens=max_new_tokens, synced_gpus=shares_weights(accelerator))

    with evaluating(answerer):
        return map_rows(answer, dataset, accelerator, batch_size, num_workers, "answer")


def evaluate_answers(answers: list[str], data: Rows) -> dict[str, float]:
    """VQA accuracy of answers to the rows of `data`, in all and per answer type, and the number of questions."""
    results = VqaAccuracy().compute(
        predictions=answers, references=list(data["answers"]), answer_types=list(data["answer_type"])
    )
    return {**results, "num_questions": len(answers)}


def answer_table(rows: dict[str, dict[str, float]]) -> str:
    """Accuracies of several models as a Markdown table, a row each, a column per kind of answer."""
    kinds = [key for key in next(iter(rows.values())) if key.startswith("vqa_accuracy")]
    heads = ["all", *(key.removeprefix("vqa_accuracy_") for key in kinds[1:])]
    lines = [f"| model | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    return "\n".join(
        lines + [f"| {name} | {' | '.join(f'{row[key]:.3f}' for key in kinds)} |" for name, row in rows.items()]
    )


__all__ = ["answer_questions", "answer_table", "evaluate_answers"]
