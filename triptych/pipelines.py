"""`triptych.pipeline`: transformers' `pipeline`, with the tasks that transformers 5 dropped."""

import os
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, PreTrainedModel


if TYPE_CHECKING:
    from transformers import Pipeline


def pipeline(task: str, model: str | os.PathLike | PreTrainedModel, **kwargs: Any) -> "Pipeline":
    """A pipeline for a checkpoint of this package, without the code that the checkpoint carries.

    Args:
        task (`str`): "image-to-text" or "visual-question-answering", which transformers 5 no longer has, or any of its own.
            A MaMMUT with a focal loss gets sigmoid scores in "zero-shot-image-classification".
        model (`str`, `PathLike` or `PreTrainedModel`): Folder, Hub name, or a model (then `processor` is needed too).
        kwargs: As of `transformers.pipeline`.
    """
    # Not at the top: `import triptych` should not wait for every pipeline of transformers.
    import transformers

    from triptych.modeling.image_pipelines import DROPPED_TASKS, SigmoidZeroShotImageClassificationPipeline

    model = str(model) if isinstance(model, os.PathLike) else model
    task = "visual-question-answering" if task == "vqa" else task
    if task in DROPPED_TASKS:
        # Under the name of a task that transformers knows, which brings the right Auto class.
        return transformers.pipeline("image-text-to-text", model, pipeline_class=DROPPED_TASKS[task], **kwargs)
    if task == "zero-shot-image-classification" and "pipeline_class" not in kwargs:
        hub_options = {key: kwargs[key] for key in ("revision", "token") if key in kwargs}
        config = (
            model.config if isinstance(model, PreTrainedModel) else AutoConfig.from_pretrained(model, **hub_options)
        )
        if getattr(config, "contrastive_loss_type", None) == "focal":
            kwargs["pipeline_class"] = SigmoidZeroShotImageClassificationPipeline
    return transformers.pipeline(task, model, **kwargs)  # type: ignore[call-overload]


__all__ = ["pipeline"]
