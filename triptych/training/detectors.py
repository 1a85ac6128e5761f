"""The detector that a training starts from: an image-text MaMMUT with fresh heads, and what of it is trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoProcessor, Owlv2ImageProcessor

from triptych.arguments import argument
from triptych.modeling.configuration_mammut import MammutConfig
from triptych.modeling.modeling_mammut_detection import MammutForObjectDetection
from triptych.processing.processing_mammut import MammutProcessor
from triptych.training.captioners import config_to_continue, read_json


SMALL_DETECTOR = yaml.safe_load(Path(__file__).with_name("small_detector.yaml").read_text(encoding="utf-8"))


@dataclass
class DetectorArguments:
    """Where the detector comes from, and what of it is trained."""

    model_name_or_path: str = argument(help="Image-text MaMMUT to start from: a folder or a Hub name.")
    random_weights: bool = argument(default=False, help="Take its configuration and tokenizer only, for comparison.")
    detection_config: str | None = argument(
        default=None, help="JSON of detection fields. Default: a small detector for 288 pixels; '{}': the paper's."
    )
    templates: list[str] = argument(  # noqa: RUF009
        default_factory=lambda: ["{}"], help="What the text side is asked of a class, {} for its name."
    )
    backbone_learning_rate: float = argument(default=3e-4, help="Peak learning rate of the ViT; 0 freezes it (F-VLM).")


def build_detector(
    args: DetectorArguments, base_classes: list[str]
) -> tuple[MammutForObjectDetection, MammutProcessor]:
    """The detector with the weights of the image-text model, and its processor.

    Raises:
        ValueError: If the checkpoint is not a MaMMUT model, or a detection field does not exist.
    """
    source = args.model_name_or_path
    config: Any = config_to_continue("mammut", source)
    own = args.detection_config
    fields = SMALL_DETECTOR if own is None else read_json("detection_config", own)
    has_copy = getattr(config.detection_config, "keep_image_text_tower", False) and not args.random_weights
    values = config.to_dict()
    values["detection_config"] = {**(values.get("detection_config") or {}), **fields}
    values["vision_config"]["crop_positions"] = False  # the stage before; here the whole table is enlarged
    values["vision_config"]["patch_dropout"] = 0.0  # and every patch has its place in the map
    config = MammutConfig.from_dict(values)
    if args.random_weights:
        model = MammutForObjectDetection._from_config(config)
    else:
        model = MammutForObjectDetection.from_pretrained(source, config=config, dtype=torch.float32)
    if model.image_text_tower is not None and not has_copy:
        model.copy_image_text_tower()
    size, known = config.detection_config.image_size, AutoProcessor.from_pretrained(source)
    colours = {name: getattr(known.image_processor, name) for name in ("image_mean", "image_std")}
    processor = MammutProcessor(
        Owlv2ImageProcessor(size={"height": size, "width": size}, **colours),
        known.tokenizer,
        class_templates=args.templates,
        base_classes=base_classes,
    )
    return model, processor


def train_heads_and_tower(model: MammutForObjectDetection, tower_learning_rate: float) -> dict[str, float]:
    """Train pyramid and heads, and with a rate of its own the ViT. The text side stays as it is.

    Args:
        model ([`MammutForObjectDetection`]): Changed in place.
        tower_learning_rate (`float`): Peak rate of the ViT; 0 freezes it.

    Returns:
        `dict[str, float]`: That rate by the prefix of the ViT's parameters.
    """
    model.model.requires_grad_(False)
    if model.image_text_tower is not None:
        model.image_text_tower.requires_grad_(False)
    if tower_learning_rate > 0:
        tower = model.model.vision_model.requires_grad_(True)
        for name, parameter in tower.embeddings.named_parameters():
            if name.startswith(("class_embedding", "tube_embedding")):  # the detector reads neither: no gradient
                parameter.requires_grad_(False)
    return {"model.vision_model.": tower_learning_rate}


__all__ = ["SMALL_DETECTOR", "DetectorArguments", "build_detector", "train_heads_and_tower"]
