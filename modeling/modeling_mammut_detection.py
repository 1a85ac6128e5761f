"""PyTorch MaMMUT that finds things: any words are classes, the image-text model scores them, a detection head adds boxes.

Image -> ViT with windowed attention -> simple feature pyramid -> proposals -> box head. Regions do not depend on the classes: find
them once (`get_regions`), then ask for any (`classify`). Everything but MaMMUT itself follows F-VLM, RO-ViT and OLN; see
docs/mammut.md.
"""

from dataclasses import dataclass, fields

import torch
from torch import nn
from transformers import initialization as init
from transformers.image_transforms import center_to_corners_format, corners_to_center_format
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from .configuration_mammut import MammutConfig, MammutDetectionConfig
from .detection import (
    BoxHead,
    MaskHead,
    RegionProposals,
    SimpleFeaturePyramid,
    Targets,
    average_regions,
    cosines,
    fuse_scores,
    require_torchvision,
    suppress,
)
from .inputs import check_pixel_values, padding_mask, refuse_unknown
from .modeling_mammut import MammutModel, MammutPreTrainedModel, MammutVisionModel


@dataclass
class MammutRegions:
    """What [`MammutForObjectDetection`] finds before it knows the classes. `regions[i]` are those of image i alone, as a batch of one.

    Args:
        boxes (`torch.Tensor` of shape `(batch_size, num_proposals, 4)`): Left, top, right, bottom in pixels of the input.
        objectness (`torch.Tensor` of shape `(batch_size, num_proposals)`): Between 0 and 1.
        embeds (`torch.Tensor` of shape `(batch_size, num_proposals, text_hidden_size)`): Normalised embeddings of the box head.
        image_text_embeds (`torch.Tensor` of shape `(batch_size, num_proposals, text_hidden_size)`):
            Normalised image embeddings of the regions alone.
        feature_maps (`list[torch.Tensor]`, of models with a mask head): The pyramid.
        image_size (`tuple[int, int]`): Height and width of the input.
    """

    boxes: torch.Tensor | None = None
    objectness: torch.Tensor | None = None
    embeds: torch.Tensor | None = None
    image_text_embeds: torch.Tensor | None = None
    feature_maps: list[torch.Tensor] | None = None
    image_size: tuple[int, int] | None = None

    def __getitem__(self, index: int) -> "MammutRegions":
        rows = {
            name: getattr(self, name)[index, None] for name in ("boxes", "objectness", "embeds", "image_text_embeds")
        }
        maps = None if self.feature_maps is None else [each[index, None] for each in self.feature_maps]
        return MammutRegions(**rows, feature_maps=maps, image_size=self.image_size)

    def to_tuple(self) -> tuple:
        return tuple(getattr(self, each.name) for each in fields(self) if getattr(self, each.name) is not None)


@dataclass
class MammutObjectDetectionOutput(ModelOutput):
    """Output of [`MammutForObjectDetection`].

    Args:
        loss (`torch.Tensor` of shape `()`, returned with `labels`): Sum of `loss_dict`.
        loss_dict (`dict[str, torch.Tensor]`, returned with `labels`): `rpn_centerness`, `rpn_box`, `classification`, `box`, `mask`.
        logits (`torch.Tensor` of shape `(batch_size, num_boxes, num_classes)`, without `labels`):
            Log-odds of the final scores, so that their sigmoid is the score. The lowest number for pairs of box and class that
            non-maximum suppression removed, and for all but the best `10 * max_detections` pairs.
        pred_boxes (`torch.Tensor` of shape `(batch_size, num_boxes, 4)`, without `labels`):
            Center x, center y, width and height as shares of the input's side, the best box first.
        objectness (`torch.Tensor` of shape `(batch_size, num_boxes)`, without `labels`): Of the boxes.
        class_probabilities (`torch.Tensor` of shape `(batch_size, num_boxes, 1 + num_classes)`, without `labels`):
            Fused scores, the background first; they sum to 1.
        pred_masks (`torch.Tensor` of shape `(batch_size, num_boxes, size, size)`, with a mask head and without `labels`):
            Probabilities within every box.
        class_embeds (`torch.Tensor` of shape `(..., num_classes, text_hidden_size)`): Normalised embeddings of the classes.
        regions (`MammutRegions`, without `labels`): For other classes of the same images.
        hidden_states, attentions (`tuple(torch.Tensor)`, *optional*): Of the ViT, as its blocks have them (in windows), when asked for.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    logits: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    objectness: torch.Tensor | None = None
    class_probabilities: torch.Tensor | None = None
    pred_masks: torch.Tensor | None = None
    class_embeds: torch.Tensor | None = None
    regions: MammutRegions | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None

    def to_tuple(self) -> tuple:
        return tuple(value.to_tuple() if isinstance(value, MammutRegions) else value for value in self.values())


class MammutForObjectDetection(MammutPreTrainedModel):
    """Open-vocabulary detection: boxes, and optionally masks, for classes that are texts.

    Load an image-text checkpoint to train the heads (`examples/finetune_detection.py`), or a trained detector to use it. Without a
    `detection_config` the configuration gets the paper's sizes.

    Raises:
        ImportError: If torchvision's operators cannot be used.
        ValueError: If the input size is no multiple of patches and windows.

    Example:

    ```python
    >>> inputs = processor(images=image, text=[["red apple", "bus"]], return_tensors="pt")
    >>> outputs = model(**inputs)
    >>> processor.post_process_grounded_object_detection(outputs, target_sizes=[(image.height, image.width)])
    ```
    """

    input_modalities = ("image", "text")
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]  # noqa: RUF012  (a captioner's checkpoint)
    _keep_in_fp32_modules_strict = ["log_temperature"]  # noqa: RUF012
    _can_record_outputs = MammutVisionModel._can_record_outputs

    def __init__(self, config: MammutConfig):
        require_torchvision(type(self).__name__)
        if config.detection_config is None:
            config.detection_config = MammutDetectionConfig()
        super().__init__(config)
        detection, vision = config.detection_config, config.vision_config
        self._check_size(detection.image_size, detection.image_size)
        strides = [vision.patch_size / scale for scale in detection.pyramid_scales]
        self.model = MammutModel(config)
        self.pyramid = SimpleFeaturePyramid(vision.hidden_size, detection.channels, detection.pyramid_scales)
        self.proposals = RegionProposals(detection, strides)
        self.box_head = BoxHead(detection, config.text_config.hidden_size, strides)
        self.mask_head = MaskHead(detection, strides) if detection.use_mask_head else None
        self.image_text_tower = None
        if detection.keep_image_text_tower:
            self.image_text_tower = MammutVisionModel._from_config(config.vision_config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BoxHead):
            init.normal_(module.background_embedding)
            init.zeros_(module.log_temperature)
            init.normal_(module.box.weight, std=0.001)

    def copy_image_text_tower(self) -> None:
        """Keep the ViT as it is now for the image-text scores, frozen: behind loading an image-text model, before training.

        Raises:
            ValueError: If the configuration does not ask for a copy.
        """
        if self.image_text_tower is None:
            raise ValueError("`detection_config.keep_image_text_tower` is false: there is nothing to copy to.")
        self.image_text_tower.load_state_dict(self.model.vision_model.state_dict())
        self.image_text_tower.requires_grad_(False)

    def _check_size(self, height: int, width: int) -> None:
        window = self.config.detection_config.window_size
        unit = self.config.vision_config.patch_size * (window or 1)
        if height % unit or width % unit:
            raise ValueError(
                f"The input of the detector must be a multiple of {unit} pixels each way (`patch_size` "
                f"{self.config.vision_config.patch_size}, `window_size` {window}), got {height} x {width}. The size is "
                "`detection_config.image_size`, and that of the image processor."
            )

    # Image

    def _feature_map(self, tower: MammutVisionModel, pixel_values: torch.Tensor, **kwargs) -> torch.Tensor:
        """Last map of a ViT, before its final norm; of shape `(batch_size, hidden_size, rows, columns)`."""
        detection, vision = self.config.detection_config, self.config.vision_config
        hidden_states = tower.embeddings(pixel_values, interpolate_pos_encoding=True)
        if vision.use_cls_token:
            hidden_states = hidden_states[:, 1:]  # no window has a place for it (ViTDet)
        if tower.pre_layernorm is not None:
            hidden_states = tower.pre_layernorm(hidden_states)
        rows, columns = (side // vision.patch_size for side in pixel_values.shape[-2:])
        num_layers = len(tower.layers)
        # Nothing has trained the kept tower to look beyond windows of about the size of its images.
        parts = 0 if tower is self.image_text_tower else min(detection.num_global_layers, num_layers)
        global_layers = {(part + 1) * num_layers // parts - 1 for part in range(parts)}
        window, is_split = detection.window_size, False
        for index, layer in enumerate(tower.layers):
            wants_split = window is not None and index not in global_layers
            if wants_split != is_split:
                exchange = _split_windows if wants_split else _join_windows
                hidden_states = exchange(hidden_states, rows, columns, window)
                is_split = wants_split
            hidden_states = layer(hidden_states, **kwargs)
        if is_split:
            hidden_states = _join_windows(hidden_states, rows, columns, window)
        return hidden_states.transpose(1, 2).unflatten(2, (rows, columns))

    def _encode(self, pixel_values: torch.Tensor, **kwargs) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The last map of the ViT, before its final norm, and the pyramid."""
        check_pixel_values(pixel_values, self.config.vision_config, any_size=True)
        self._check_size(*pixel_values.shape[-2:])
        feature_map = self._feature_map(self.model.vision_model, pixel_values, **kwargs)
        normed = self.model.vision_model.post_layernorm(feature_map.movedim(1, -1)).movedim(-1, 1)
        return feature_map, self.pyramid(normed)

    def _image_text_embeds(
        self, tower: MammutVisionModel, feature_map: torch.Tensor, boxes: list[torch.Tensor]
    ) -> torch.Tensor:
        """The image embedding (pool and norm in the tower's order, project) of every region; `(boxes of all images, width)`."""
        norm_first = self.config.vision_config.norm_before_pool
        if norm_first:
            feature_map = tower.post_layernorm(feature_map.movedim(1, -1)).movedim(-1, 1)
        stride = self.config.vision_config.patch_size
        pooled = average_regions(feature_map, boxes, self.config.detection_config.image_text_pool_size, stride)
        if not norm_first:
            pooled = tower.post_layernorm(pooled)
        projection = self.model.visual_projection or self.model.vision_to_text_projection
        return nn.functional.normalize(projection(pooled).float(), dim=-1)

    def get_regions(self, pixel_values: torch.Tensor, **kwargs) -> MammutRegions:
        """Find regions, whatever they may show.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Normalised, padded images.

        Raises:
            ValueError: If the size is no multiple of patches and windows.
        """
        feature_map, maps = self._encode(pixel_values, **kwargs)
        tower = self.model.vision_model
        if self.image_text_tower is not None:
            tower = self.image_text_tower
            feature_map = self._feature_map(tower, pixel_values, **kwargs)
        image_size = tuple(pixel_values.shape[-2:])
        _, logits, boxes = self.proposals(maps)
        proposals, objectness = self.proposals.select(logits, boxes, image_size, nms_threshold=1.0)
        embeds, codes = self.box_head(maps, proposals)
        refined = self.box_head.decode(codes, torch.cat(proposals), image_size).unflatten(0, (len(proposals), -1))
        image_text_embeds = self._image_text_embeds(tower, feature_map, list(refined))
        return MammutRegions(
            boxes=refined,
            objectness=torch.stack(objectness),
            embeds=embeds.unflatten(0, (len(proposals), -1)),
            image_text_embeds=image_text_embeds.unflatten(0, (len(proposals), -1)),
            feature_maps=maps if self.mask_head is not None else None,
            image_size=image_size,
        )

    # Classes

    def get_class_embeds(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None, chunk_size: int = 256
    ) -> torch.Tensor:
        """Embeddings of classes: the contrastive pass, normalised, averaged over templates, normalised.

        Args:
            input_ids (`torch.LongTensor` of shape `(num_classes, sequence_length)` or
                `(num_classes, num_templates, sequence_length)`): Names of classes, or what templates make of them.
            attention_mask (`torch.Tensor` of the same shape, *optional*): 1 for tokens, 0 for padding.
            chunk_size (`int`): Texts that are encoded at once.

        Returns:
            `torch.Tensor` of shape `(num_classes, text_hidden_size)`, fp32.
        """
        if input_ids.ndim == 2:
            input_ids = input_ids[:, None]
            attention_mask = None if attention_mask is None else attention_mask[:, None]
        if 0 in input_ids.shape:
            raise ValueError(f"`input_ids` must hold at least one class, got shape {tuple(input_ids.shape)}.")
        num_classes, num_templates = input_ids.shape[:2]
        chunks = input_ids.flatten(0, 1).split(chunk_size)
        masks = [None] * len(chunks) if attention_mask is None else attention_mask.flatten(0, 1).split(chunk_size)
        found = [
            self.model.get_text_features(ids, mask, return_dict=True).pooler_output.float()
            for ids, mask in zip(chunks, masks, strict=True)
        ]
        embeds = nn.functional.normalize(torch.cat(found), dim=-1).unflatten(0, (num_classes, num_templates))
        return nn.functional.normalize(embeds.mean(dim=1), dim=-1)

    def _empty_text_embed(self) -> torch.Tensor:
        """Embedding of the empty text, the image-text model's background; of shape `(text_hidden_size,)`."""
        text = self.config.text_config
        eos = text.eos_token_id if isinstance(text.eos_token_id, int) else text.eos_token_id[0]
        ids = torch.tensor([[text.bos_token_id, eos]], device=self.device)
        return self.get_class_embeds(ids, torch.ones_like(ids))[0]

    def _classes_per_image(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None, batch_size: int
    ) -> torch.Tensor:
        """Class embeddings `(batch_size, num_classes, ...)` of `batch_size * num_classes` texts; equal ones are encoded once."""
        if len(input_ids) % batch_size or not len(input_ids):
            raise ValueError(
                f"`input_ids` must hold equally many classes for every image, at least one: got {len(input_ids)} classes for "
                f"{batch_size} images."
            )
        if attention_mask is None:
            attention_mask = padding_mask(input_ids, self.config.text_config.pad_token_id)
        rows = torch.cat([input_ids.flatten(1), attention_mask.flatten(1)], dim=1)
        distinct, which = rows.unique(dim=0, return_inverse=True)
        ids, mask = (part.reshape(-1, *input_ids.shape[1:]) for part in distinct.chunk(2, dim=1))
        return self.get_class_embeds(ids, mask)[which].unflatten(0, (batch_size, -1))

    def classify(
        self,
        regions: MammutRegions,
        class_embeds: torch.Tensor,
        is_base: torch.BoolTensor | None = None,
        class_mask: torch.BoolTensor | None = None,
        fusion: bool = True,
    ) -> MammutObjectDetectionOutput:
        """Score regions for classes. Every region divides a probability of 1 among the background and the classes, so classes of the
        same name share theirs.

        Args:
            regions (`MammutRegions`): Of some images.
            class_embeds (`torch.Tensor` of shape `(num_classes, text_hidden_size)` or with a leading `batch_size`): Of
                `get_class_embeds`.
            is_base (`torch.BoolTensor` of shape `(num_classes,)` or `(batch_size, num_classes)`, *optional*):
                Classes with boxes in training. Default: unknown, all are taken for novel.
            class_mask (`torch.BoolTensor` of shape `(batch_size, num_classes)`, *optional*): False for what only fills up the
                classes of an image; its score is 0.
            fusion (`bool`): Whether the image-text model has a say.

        Raises:
            ValueError: If there is no class, or shapes do not fit.
        """
        detection = self.config.detection_config
        num_classes = class_embeds.shape[-2]
        if not num_classes or class_embeds.shape[-1] != regions.embeds.shape[-1]:
            raise ValueError(
                f"`class_embeds` must have shape (num_classes, {regions.embeds.shape[-1]}) with at least one class, got "
                f"{tuple(class_embeds.shape)}."
            )
        per_image = (len(regions.boxes), num_classes)
        for name, given, shapes in (
            ("is_base", is_base, ((num_classes,), per_image)),
            ("class_mask", class_mask, (per_image,)),
        ):
            if given is not None and tuple(given.shape) not in shapes:
                expected = " or ".join(str(shape) for shape in shapes)
                raise ValueError(f"`{name}` must have shape {expected}, got {tuple(given.shape)}.")
        if is_base is not None:
            is_base = is_base.bool().to(regions.boxes.device)
            is_base = is_base[:, None] if is_base.ndim == 2 else is_base
        own = self.box_head.class_logits(regions.embeds, class_embeds)
        image_text = cosines(regions.image_text_embeds, self._empty_text_embed(), class_embeds)
        temperature = detection.image_text_temperature
        image_text = image_text * (self.model.logit_scale.float().exp() if temperature is None else 1 / temperature)
        if class_mask is not None:
            hidden = ~nn.functional.pad(class_mask.bool().to(own.device), (1, 0), value=True)[:, None]
            own, image_text = (
                logits.masked_fill(hidden, torch.finfo(logits.dtype).min) for logits in (own, image_text)
            )
        if fusion:
            fused = fuse_scores(own, image_text, is_base, detection.base_exponent, detection.novel_exponent)
        else:
            fused = own.softmax(dim=-1)
        scores = regions.objectness[..., None] ** detection.objectness_exponent * fused[..., 1:]

        # (batch, proposals, classes) -> the best boxes
        candidates = 10 * detection.max_detections
        scores = torch.stack(
            [
                suppress(boxes, each, detection.nms_threshold, candidates)
                for boxes, each in zip(regions.boxes, scores, strict=True)
            ]
        )
        count = min(detection.max_detections, scores.shape[1])
        best = scores.max(dim=-1).values.topk(count, dim=1).indices[..., None]
        boxes = regions.boxes.take_along_dim(best, dim=1)
        masks = None
        if self.mask_head is not None:
            masks = self.mask_head(regions.feature_maps, list(boxes)).sigmoid()[:, 0].unflatten(0, (-1, count))
        height, width = regions.image_size
        size = torch.tensor([width, height, width, height], device=boxes.device)
        return MammutObjectDetectionOutput(
            logits=scores.take_along_dim(best, dim=1).logit().nan_to_num(),
            pred_boxes=corners_to_center_format(boxes / size),
            objectness=regions.objectness.take_along_dim(best[..., 0], dim=1),
            class_probabilities=fused.take_along_dim(best, dim=1),
            pred_masks=masks,
            class_embeds=class_embeds,
            regions=regions,
        )

    # Training

    def _targets(
        self, labels: list[dict], batch_size: int, num_classes: int, image_size: tuple[int, int]
    ) -> list[Targets]:
        if len(labels) != batch_size:
            raise ValueError(f"`labels` must describe every image, got {len(labels)} for {batch_size} images.")
        height, width = image_size
        size = torch.tensor([width, height, width, height], dtype=torch.float32, device=self.device)
        targets = []
        for index, label in enumerate(labels):
            classes = label["class_labels"].to(self.device)
            boxes = center_to_corners_format(label["boxes"].to(self.device).float().reshape(-1, 4)) * size
            if len(boxes) != len(classes):
                raise ValueError(f"`labels[{index}]` has {len(boxes)} boxes and {len(classes)} class_labels.")
            if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
                raise ValueError(
                    f"`labels[{index}]` has class_labels from {int(classes.min())} to {int(classes.max())}; there are "
                    f"{num_classes} classes."
                )
            boxes = torch.minimum(boxes.clamp(min=0), size)
            kept = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1)  # less than a pixel: nothing to see
            masks = None
            if self.mask_head is not None:
                if "masks" not in label and len(classes):
                    raise ValueError(f"`labels[{index}]` needs `masks`: this model has a mask head.")
                masks = label["masks"].to(self.device) if len(classes) else boxes.new_zeros(0, height, width)
                if masks.shape != (len(classes), height, width):
                    raise ValueError(
                        f"`labels[{index}]` must have `masks` of shape {(len(classes), height, width)}, got "
                        f"{tuple(masks.shape)}."
                    )
                masks = masks[kept]
            targets.append(Targets(boxes[kept], classes[kept], masks))
        return targets

    def _losses(
        self, maps: list[torch.Tensor], class_embeds: torch.Tensor, targets: list[Targets], image_size: tuple[int, int]
    ) -> dict[str, torch.Tensor]:
        anchors, logits, boxes = self.proposals(maps)
        centerness, box = self.proposals.losses(anchors, logits, boxes, targets)
        losses = {"rpn_centerness": centerness, "rpn_box": box}
        threshold = self.config.detection_config.rpn_nms_threshold
        proposals, _ = self.proposals.select(logits.detach(), boxes.detach(), image_size, threshold)
        sampled, objects = self.box_head.sample(proposals, targets)
        embeds, codes = self.box_head(maps, sampled)
        labels, true_boxes = [], []
        for target, matched in zip(targets, objects, strict=True):
            # A row behind the last object, where the regions without any point to
            labels.append(torch.cat([target.labels, target.labels.new_full((1,), -1)])[matched])
            true_boxes.append(torch.cat([target.boxes, target.boxes.new_zeros(1, 4)])[matched])
        losses["classification"], losses["box"] = self.box_head.losses(
            embeds, codes, class_embeds, torch.cat(sampled), torch.cat(true_boxes), torch.cat(labels)
        )
        if self.mask_head is not None:
            shown = [matched >= 0 for matched in objects]
            positive = [boxes[rows] for boxes, rows in zip(sampled, shown, strict=True)]
            matched = [each[rows] for each, rows in zip(objects, shown, strict=True)]
            losses["mask"] = self.mask_head.loss(
                self.mask_head(maps, positive), positive, [target.masks for target in targets], matched
            )
        return losses

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        class_embeds: torch.Tensor | None = None,
        is_base: torch.BoolTensor | None = None,
        class_mask: torch.BoolTensor | None = None,
        regions: MammutRegions | None = None,
        labels: list[dict] | None = None,
        **kwargs,
    ) -> MammutObjectDetectionOutput:
        """Find the objects of classes in images, or train.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size * num_classes, sequence_length)` or
                `(batch_size * num_classes, num_templates, sequence_length)`): The classes of the first image, then those of the
                second, ..., equally many for every image. Equal texts are encoded once.
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Normalised, padded images.
            attention_mask (`torch.Tensor` of the shape of `input_ids`, *optional*): 1 for tokens, 0 for padding.
            class_embeds (*optional*): Instead of `input_ids`, for all images or for each; as in `classify`.
            is_base, class_mask (*optional*): As in `classify`.
            regions (`MammutRegions`, *optional*): Instead of `pixel_values`: the field of that name of an earlier output.
            labels (`list[dict]`, *optional*): One per image: `class_labels` `(objects,)`, indices of classes; `boxes`
                `(objects, 4)`, center x, center y, width and height as shares of the input's side; `masks`
                `(objects, height, width)` for a mask head. Images without objects are welcome.

        Raises:
            ValueError: If images or classes are missing, or shapes do not fit.
        """
        refuse_unknown(kwargs)
        if (pixel_values is None) == (regions is None):
            raise ValueError("Pass exactly one of `pixel_values` and `regions`.")
        if (input_ids is None) == (class_embeds is None):
            raise ValueError("Pass exactly one of `input_ids` (with their `attention_mask`) and `class_embeds`.")
        batch_size = len(pixel_values) if regions is None else len(regions.boxes)
        if class_embeds is None:
            class_embeds = self._classes_per_image(input_ids, attention_mask, batch_size)
        if labels is not None:
            if pixel_values is None:
                raise ValueError("`labels` need `pixel_values`, not `regions`.")
            if class_embeds.ndim == 3:
                if (class_embeds != class_embeds[:1]).any():
                    raise ValueError("With `labels`, all images must have the same classes.")
                class_embeds = class_embeds[0]
            image_size = tuple(pixel_values.shape[-2:])
            targets = self._targets(labels, batch_size, len(class_embeds), image_size)
            _, maps = self._encode(pixel_values, **kwargs)
            losses = self._losses(maps, class_embeds, targets, image_size)
            return MammutObjectDetectionOutput(
                loss=torch.stack(list(losses.values())).sum(), loss_dict=losses, class_embeds=class_embeds
            )
        if regions is None:
            regions = self.get_regions(pixel_values, **kwargs)
        return self.classify(regions, class_embeds, is_base, class_mask)


def _split_windows(tokens: torch.Tensor, rows: int, columns: int, window: int) -> torch.Tensor:
    """`(batch, rows * columns, width)` -> `(batch * windows, window * window, width)`."""
    tokens = tokens.unflatten(1, (rows // window, window, columns // window, window))
    return tokens.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def _join_windows(tokens: torch.Tensor, rows: int, columns: int, window: int) -> torch.Tensor:
    """The way back from `_split_windows`."""
    tokens = tokens.unflatten(0, (-1, rows // window, columns // window)).unflatten(3, (window, window))
    return tokens.transpose(2, 3).flatten(3, 4).flatten(1, 3)


__all__ = ["MammutForObjectDetection", "MammutObjectDetectionOutput", "MammutRegions"]
