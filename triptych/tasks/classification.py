"""Zero-shot classification (Radford et al. 2021, arXiv 2103.00020, section 3.1): an image belongs to the class whose name it is nearest to.

A class is the mean of its name in several sentences: vectors of length 1, whose mean is brought to length 1 again.
"""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import yaml
from PIL import Image
from torch.utils.data import Dataset

from triptych.data.pictures import decode_image
from triptych.data.splits import read_split
from triptych.evaluation.retrieval_recall import ranks_of_first
from triptych.tasks.encoders import Encoder
from triptych.tasks.layouts import IMAGE_COLUMNS, find_column, read_tars


TEMPLATES: dict[str, list[str]] = yaml.safe_load(
    Path(__file__).with_name("templates.yaml").read_text(encoding="utf-8")
)


def read_lines(path: Path, name: str) -> list[str]:
    """The lines of a file, none of them blank but at its end.

    Raises:
        ValueError: If there is no such file, or a blank line, behind which all would be miscounted; names the argument.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`{name}` {path} cannot be read: {error}.") from error
    if not lines or "" in lines:
        blank = f"has a blank line {lines.index('') + 1}" if lines else "is empty"
        raise ValueError(f"`{name}` {path} {blank}; expected one per line.")
    return lines


def read_templates(name: str) -> list[str]:
    """Sentences with `{}` or `{c}`, as CLIP_benchmark writes it, for the name of a class.

    Args:
        name (`str`): `"plain"`, `"imagenet"`, or a file with one per line.

    Raises:
        ValueError: If it is neither, or a line has no place for a name.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    if not Path(name).is_file():
        raise ValueError(f"`templates` must be one of {', '.join(TEMPLATES)}, or a file; there is no {name!r}.")
    templates = [line.replace("{c}", "{}") for line in read_lines(Path(name), "templates")]
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"`templates` {name} holds {template!r}; expected one {{}} for the name of a class.")
    return templates


class LabelledImages(Dataset):
    """Rows of `image` (RGB) and `label` (the number of its class).

    Args:
        data (`datasets.Dataset`): With the columns.
        image_column, label_column (`str`): Their names.
        num_classes (`int`): How many classes there are.

    Raises:
        ValueError: If a label is no number of a class.
    """

    def __init__(self, data: datasets.Dataset, image_column: str, label_column: str, num_classes: int):
        self.labels = list(data[label_column])
        for row, label in enumerate(self.labels):
            if not isinstance(label, int) or not 0 <= label < num_classes:
                raise ValueError(
                    f"`{label_column}` of row {row} is {label!r}; expected the number of one of {num_classes} classes, from 0."
                )
        self.images = data.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
        self.image_column = image_column

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": decode_image(self.images[index][self.image_column], index),
            "label": self.labels[index],
        }


class Classification:
    """The task.

    Args:
        source (`str`): A folder of CLIP_benchmark (`classnames.txt`, `zeroshot_classification_templates.txt`, `test/*.tar` with `.cls`), a
            folder with a folder of pictures for every class, parquet files, or a Hub data set with a label.
        split (`str`): To evaluate.
        class_names (`Path`, *optional*): File with the names in the order of the labels. Default: those of the data.
        templates (`str`, *optional*): As of [`read_templates`]. Default: those of the data, else `"plain"`.
        image_column, label_column (`str`, *optional*): Default: the usual ones.

    Raises:
        ValueError: If something of it is not there or does not fit.
    """

    name = "classification"

    def __init__(
        self,
        source: str,
        split: str = "test",
        class_names: Path | None = None,
        templates: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
    ):
        folder = Path(source)
        brings_names = (folder / "classnames.txt").is_file()
        if brings_names:
            data = read_tars(folder, split)
            own = folder / "zeroshot_classification_templates.txt"
            templates = templates or (str(own) if own.is_file() else None)
            class_names = class_names or folder / "classnames.txt"
        else:
            data = read_split(source, split)
        columns = data.column_names
        image_column = find_column(image_column, IMAGE_COLUMNS, columns, "image_column", source)
        label_column = find_column(
            label_column, ("label", "labels", "fine_label", "cls"), columns, "label_column", source
        )
        feature = data.features[label_column]
        if class_names is not None:
            self.class_names = read_lines(class_names, "class_names")
        elif isinstance(feature, datasets.ClassLabel):
            self.class_names = [name.replace("_", " ") for name in feature.names]
        else:
            raise ValueError(f"`class_names` must be given: the labels of {source!r} have no names.")
        if isinstance(feature, datasets.ClassLabel) and len(self.class_names) != feature.num_classes:
            raise ValueError(
                f"`class_names` holds {len(self.class_names)} names, the data have {feature.num_classes} classes."
            )
        self.templates = read_templates(templates or "plain")
        self.rows = LabelledImages(data, image_column, label_column, len(self.class_names))
        self._classes: tuple[Encoder, torch.Tensor] | None = None

    def classes(self, encoder: Encoder) -> torch.Tensor:
        """Vectors of the classes, of shape `(num_classes, dim)`."""
        if self._classes is None or self._classes[0] is not encoder:  # another, or one whose weights have changed
            sentences = (
                encoder.texts([each.replace("{}", name) for each in self.templates]) for name in self.class_names
            )
            means = torch.stack([each.mean(0) for each in sentences])
            self._classes = encoder, torch.nn.functional.normalize(means, dim=-1)
        return self._classes[1]

    def predict(self, encoder: Encoder, rows: list[dict[str, Any]]) -> list[dict[str, int]]:
        """Of every image its label, the nearest class, and how many classes are nearer than its own."""
        pictures: list[Image.Image] = [row["image"] for row in rows]
        labels = [row["label"] for row in rows]
        similarity = (encoder.images(pictures) @ self.classes(encoder).T).numpy()
        ranks = ranks_of_first(similarity, [[label] for label in labels])
        return [
            {"label": label, "prediction": int(scores.argmax()), "rank": int(rank)}
            for label, scores, rank in zip(labels, similarity, ranks, strict=True)
        ]

    def score(self, samples: list[dict[str, int]]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """`top1`, `top5` where there are more than five classes, `mean_per_class_recall`, and the accuracy of every class that occurs."""
        ranks, labels = (np.array([sample[key] for sample in samples]) for key in ("rank", "label"))
        by_class = [
            {"name": self.class_names[label], "accuracy": float((ranks[labels == label] < 1).mean())}
            for label in np.unique(labels)
        ]
        values = {f"top{k}": (ranks < k).astype(float) for k in (1, 5) if k == 1 or len(self.class_names) > k}
        found: dict[str, Any] = {name: float(each.mean()) for name, each in values.items()}
        recall = float(np.mean([each["accuracy"] for each in by_class]))
        return found | {"mean_per_class_recall": recall, "classes": by_class}, values


__all__ = ["TEMPLATES", "Classification", "LabelledImages", "read_lines", "read_templates"]
