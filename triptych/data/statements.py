"""What cards say about the data sets that packages bring: origin, licence, and what a model knows that saw nothing else."""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml


# Not the name of a file, as shards have it
_HUB_NAME = re.compile(r"([\w.-]+/)?[\w.-]+(?<!\.tar)(?<!\.parquet)")


@dataclass(frozen=True)
class Statement:
    """What a card says about a data set.

    Args:
        title (`str`): Its name.
        license (`str`, *optional*): Identifier as the Hub knows it.
        text (`str`): Origin, attribution and licence, in a sentence or two.
        limits (`str`): What a model that was trained on nothing else does not know.
        language (`str`, *optional*): Of its texts.
        hub_name (`str`, *optional*): Its name on the Hub.
        splits (`tuple[str, ...]`): What a package's data set can be evaluated on.
    """

    title: str
    license: str | None
    text: str
    limits: str
    language: str | None = None
    hub_name: str | None = None
    splits: tuple[str, ...] = ("test",)


def _brought() -> dict[str, Statement]:
    """By name, what `statements.yaml` says."""
    entries = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return {
        name: Statement(**{**entry, "text": " ".join(entry["text"]), "limits": " ".join(entry["limits"])})
        for name, entry in entries.items()
        if not name.startswith(".")
    }


STATEMENTS = _brought()


def _is_on_hub(dataset: str) -> bool:
    return _HUB_NAME.fullmatch(dataset) is not None and not Path(dataset).exists()


def title_of(dataset: str) -> str:
    """The name of a Hub data set, or of a mixture; the last part of where another one lies."""
    return dataset if _is_on_hub(dataset) or " + " in dataset else dataset.rstrip("/").rsplit("/", 1)[-1]


def statement_of(dataset: str, license_id: str | None = None) -> Statement:
    """What a card says about a data set: one that packages bring, or somebody's own.

    Args:
        dataset (`str`): Name, folder, file, shards or Hub name.
        license_id (`str`, *optional*): Licence of a data set that no package brings.
    """
    if dataset in STATEMENTS:
        return STATEMENTS[dataset]
    is_on_hub, title = _is_on_hub(dataset), title_of(dataset)
    return Statement(
        title,
        license_id,
        f"Trained on {title}; licence of the data: {license_id or 'unknown'}.",
        "Not assessed beyond the numbers above. Expect the biases of the training texts.",
        hub_name=dataset if is_on_hub else None,
    )


__all__ = ["STATEMENTS", "Statement", "statement_of", "title_of"]
