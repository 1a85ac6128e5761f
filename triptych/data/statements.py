"""What cards say about the data sets that packages bring: origin, licence, and what a model knows that saw nothing else."""

from dataclasses import dataclass
from pathlib import Path

from triptych.data import easy_vqa, openmoji


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
    """

    title: str
    license: str | None
    text: str
    limits: str
    language: str | None = None
    hub_name: str | None = None


_DRAWINGS = f"Drawings: OpenMoji ({openmoji.SOURCE_URL}). {openmoji.ATTRIBUTION}."
_NAMES = (
    f"{_DRAWINGS} Captions: Unicode CLDR short names. The weights were trained on CC BY-SA 4.0 material and are published under "
    "the same licence."
)
_EASY_VQA = f"{easy_vqa.ATTRIBUTION}, {easy_vqa.SOURCE_URL}, MIT licence."


def _only(grounds: str) -> str:
    return (
        f"The model knows flat emoji drawings on {grounds} and their names, nothing else: photographs are out of its domain. A "
        "concept without a relative in the training split is named wrongly. Skin tones and genders in its captions are those of "
        "Unicode's names, not statements about people."
    )


_SMALL_WORLD = (
    "Knows nothing but pictures and questions like those of its data; other ones get an answer all the same."
)
STATEMENTS = {
    "openmoji": Statement("OpenMoji captions", openmoji.LICENSE, _NAMES, _only("white"), "en"),
    "openmoji-scenes": Statement(
        "OpenMoji captions", openmoji.LICENSE, _NAMES, _only("plain and patterned grounds"), "en"
    ),
    "emoji-scenes": Statement(
        "emoji-scenes", openmoji.LICENSE, _DRAWINGS, "Knows nothing but pictures like those of its data.", "en"
    ),
    "easy-vqa": Statement("easy-vqa", easy_vqa.LICENSE, _EASY_VQA, _SMALL_WORLD, "en"),
    "moving-emoji": Statement(
        "moving-emoji",
        openmoji.LICENSE,
        f"Clips rendered from OpenMoji. {_DRAWINGS} The weights are published under the same licence.",
        _SMALL_WORLD,
        "en",
    ),
    "openmoji-questions": Statement(
        "pictures of OpenMoji drawings and easy-VQA",
        openmoji.LICENSE,
        f"{_DRAWINGS} {_EASY_VQA} The weights are published under the licence of the drawings.",
        _SMALL_WORLD,
        "en",
    ),
}


def statement_of(dataset: str, license_id: str | None = None) -> Statement:
    """What a card says about a data set: one that packages bring, or somebody's own.

    Args:
        dataset (`str`): Name, folder, file or Hub name.
        license_id (`str`, *optional*): Licence of a data set that no package brings.
    """
    if dataset in STATEMENTS:
        return STATEMENTS[dataset]
    is_local = Path(dataset).exists()
    title = Path(dataset).name if is_local else dataset
    return Statement(
        title,
        license_id,
        f"Trained on {title}; licence of the data: {license_id or 'unknown'}.",
        "Not assessed beyond the numbers above. Expect the biases of the training texts.",
        hub_name=None if is_local else dataset,
    )


__all__ = ["STATEMENTS", "Statement", "statement_of"]
