"""Results of an evaluation inside the repository of the model: its card, and the files from which the Hub makes leaderboards."""

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, eval_result_entries_to_yaml

from triptych.files import write_whole


FOLDER = ".eval_results"
# Of transformers' and the Hub's task names.
_TASK_TYPES = {
    "classification": "zero-shot-image-classification",
    "retrieval": "image-text-retrieval",
    "captions": "image-to-text",
    "questions": "visual-question-answering",
    "yes-no": "visual-question-answering",
    "choices": "visual-question-answering",
    "detection": "zero-shot-object-detection",
}


def write_to_repository(results: dict[str, Any], folder: Path, dataset_id: str | None = None) -> list[Path]:
    """Write numbers into a card's `model-index`, and into `.eval_results/` where the data are on the Hub. Older ones of the same data go.

    Args:
        results (`dict`): Of [`run_task`].
        folder (`Path`): The repository, with a card.
        dataset_id (`str`, *optional*): Name of the data on the Hub.

    Returns:
        `list[Path]`: What was written.

    Raises:
        ValueError: If there is no card, or the name is none of the Hub.
    """
    path = folder / "README.md"
    if not path.is_file():
        raise ValueError(f"`model` {folder} has no card (README.md) to write the numbers into.")
    if dataset_id is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", dataset_id):
        raise ValueError(f"`dataset_id` must be 'owner/name', got {dataset_id!r}.")
    name = dataset_id or Path(results["dataset"]).name
    task, split = _TASK_TYPES[results["task"]], results.get("split", "test")
    numbers = {key: value for key, value in results["metrics"].items() if isinstance(value, float)}
    card = ModelCard.load(path)
    kept = [
        each
        for each in card.data.eval_results or []
        if (each.dataset_type, each.dataset_split, each.task_type) != (name, split, task)
        or each.metric_type not in numbers
    ]
    card.data.eval_results = kept + [
        EvalResult(
            task_type=task, dataset_type=name, dataset_name=name, dataset_split=split, metric_type=key, metric_value=value
        )
        for key, value in numbers.items()
    ]  # fmt: skip
    if card.data.model_name is None:
        card.data.model_name = folder.name
    card.save(path)
    if dataset_id is None:
        return [path]
    of_all = results["limit"] is None
    note = f"{results['task']}, split {split}, {results['num_samples']} rows{'' if of_all else ' of more'}, by triptych evaluate"
    entries = [
        EvalResultEntry(dataset_id=dataset_id, task_id=key, value=value, notes=note) for key, value in numbers.items()
    ]
    target = folder / FOLDER / f"{dataset_id.replace('/', '--')}-{results['task']}.yaml"
    target.parent.mkdir(exist_ok=True)
    write_whole(target, yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False))
    return [path, target]


__all__ = ["FOLDER", "write_to_repository"]
