"""Every task by its name, and what it needs of a model."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from triptych.evaluation.generator import Generator
from triptych.tasks.captions import Captions
from triptych.tasks.choices import Choices
from triptych.tasks.classification import Classification
from triptych.tasks.detection import Detection, detector_of
from triptych.tasks.encoders import Encoder
from triptych.tasks.questions import Questions, YesNo
from triptych.tasks.retrieval import Retrieval
from triptych.tasks.runs import Task


@dataclass(frozen=True)
class Kind:
    """A kind of task.

    Args:
        task (`type`): Its class; the arguments behind `source` are its options.
        auto_class (`str`): Of transformers, which loads a model for it.
        adapt (`Callable`): From a model and its processor to what the task works with.
    """

    task: type
    auto_class: str
    adapt: Callable[[Any, Any], Any]

    @property
    def options(self) -> list[str]:
        """Names of the options."""
        names: list[str] = []
        for each in self.task.__mro__[:-1]:  # a task that extends another takes its options, too
            names += list(inspect.signature(each.__init__).parameters)  # type: ignore[misc]
        return sorted({*names} - {"self", "source", "options"})


KINDS = {
    "classification": Kind(Classification, "AutoModel", Encoder),
    "retrieval": Kind(Retrieval, "AutoModel", Encoder),
    "captions": Kind(Captions, "AutoModelForImageTextToText", Generator),
    "questions": Kind(Questions, "AutoModelForImageTextToText", Generator),
    "yes-no": Kind(YesNo, "AutoModelForImageTextToText", Generator),
    "choices": Kind(Choices, "AutoModelForImageTextToText", Generator),
    "detection": Kind(Detection, "AutoModelForZeroShotObjectDetection", detector_of),
}


def make_task(name: str, source: str, options: dict[str, Any]) -> Task:
    """A task.

    Args:
        name (`str`): One of `KINDS`.
        source (`str`): Where its data are.
        options (`dict`): Of the task; those that are `None` are not given.

    Raises:
        ValueError: If the task has no such option, or the data do not fit.
    """
    if name not in KINDS:
        raise ValueError(f"`task` must be one of {', '.join(KINDS)}, got {name!r}.")
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in KINDS[name].options:
            raise ValueError(f"`{key}` has no meaning for {name}, which takes {', '.join(KINDS[name].options)}.")
    return KINDS[name].task(source, **given)


__all__ = ["KINDS", "Kind", "make_task"]
