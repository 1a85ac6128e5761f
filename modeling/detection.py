"""Parts of the open-vocabulary detector: simple feature pyramid, region proposals, box and mask heads, score fusion.

Anchors, RoIAlign, matching, sampling, box coding and non-maximum suppression are torchvision's. Boxes are left, top, right and
bottom in pixels of the model's input unless a docstring says otherwise.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils.generic import maybe_autocast

from .layers import learned_scalar


try:
    import torchvision
    from torchvision.models.convnext import LayerNorm2d
    from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, BoxLinearCoder, Matcher
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.roi_heads import maskrcnn_loss
    from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, generalized_box_iou_loss, nms, roi_align
    from torchvision.ops.poolers import LevelMapper
except (ImportError, RuntimeError):  # RuntimeError: its operators do not load beside this torch
    torchvision = None


def require_torchvision(name: str) -> None:
    """Say what is missing.

    Raises:
        ImportError: If torchvision cannot be used.
    """
    if torchvision is None:
        raise ImportError(
            f"{name} needs torchvision's box operators: pip install 'triptych[detection]', with torch and torchvision from the "
            "same index (a CPU-only torch cannot load the operators of PyPI's torchvision)."
        )


@dataclass
class Targets:
    """Objects of one image.

    Args:
        boxes (`torch.Tensor` of shape `(objects, 4)`): In pixels of the input.
        labels (`torch.LongTensor` of shape `(objects,)`): Indices of classes.
        masks (`torch.Tensor` of shape `(objects, height, width)`, *optional*): 1 for an object's pixels.
    """

    boxes: torch.Tensor
    labels: torch.LongTensor
    masks: torch.Tensor | None = None


def _convolutions(channels: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers)


class SimpleFeaturePyramid(nn.Module):
    """Maps of several scales from the last map of a plain ViT (ViTDet, arXiv 2203.16527, section 3).

    Args:
        hidden_size (`int`): Channels of the ViT's map.
        channels (`int`): Channels of every map of the pyramid.
        scales (`list[float]`): Size of every map relative to the ViT's, powers of two, the largest first.
    """

    def __init__(self, hidden_size: int, channels: int, scales: list[float]):
        super().__init__()
        self.levels = nn.ModuleList()
        for scale in scales:
            layers: list[nn.Module] = []
            width = hidden_size
            for step in range(round(math.log2(max(scale, 1)))):
                if step:
                    layers += [LayerNorm2d(width), nn.GELU()]
                layers.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
                width //= 2
            if scale < 1:
                layers.append(nn.MaxPool2d(round(1 / scale)))
            layers += [nn.Conv2d(width, channels, 1, bias=False), LayerNorm2d(channels)]
            layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels)]
            self.levels.append(nn.Sequential(*layers))

    def forward(self, feature_map: torch.Tensor) -> list[torch.Tensor]:
        return [level(feature_map) for level in self.levels]


class RegionProposals(nn.Module):
    """Class-agnostic proposals: one anchor per location, its centerness as objectness, distances to the four sides as box (OLN,
    arXiv 2108.06753; FCOS for centerness, arXiv 1904.01355, eq. 3)."""

    def __init__(self, config, strides: list[float]):
        super().__init__()
        self.config = config
        self.strides = strides
        self.convolutions = nn.Sequential()
        for _ in range(config.rpn_conv_layers):
            self.convolutions.extend([nn.Conv2d(config.channels, config.channels, 3, padding=1), nn.ReLU()])
        self.objectness = nn.Conv2d(config.channels, 1, 1)
        self.distances = nn.Conv2d(config.channels, 4, 1)
        self.anchor_generator = AnchorGenerator(
            sizes=tuple((round(config.anchor_scale * stride),) for stride in strides),
            aspect_ratios=((1.0,),) * len(strides),
        )
        self.coder = BoxLinearCoder(normalize_by_size=True)
        self.matcher = Matcher(config.rpn_positive_iou, config.rpn_negative_iou, allow_low_quality_matches=True)
        self.sampler = BalancedPositiveNegativeSampler(config.rpn_samples, 1 - config.rpn_background_fraction)

    def anchors(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Anchors of all locations, around the middle of each; of shape `(locations, 4)`."""
        device = maps[0].device
        self.anchor_generator.set_cell_anchors(torch.float32, device)
        per_level = self.anchor_generator.grid_anchors(
            [list(level.shape[-2:]) for level in maps],
            [[torch.tensor(stride, device=device)] * 2 for stride in self.strides],
        )
        return torch.cat([boxes + stride / 2 for boxes, stride in zip(per_level, self.strides, strict=True)])

    def forward(self, maps: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Anchors `(locations, 4)`; centerness logits `(batch, locations)`; boxes `(batch, locations, 4)`."""
        anchors = self.anchors(maps)
        logits, distances = [], []
        for level in maps:
            hidden = self.convolutions(level)
            logits.append(self.objectness(hidden).flatten(1))
            distances.append(self.distances(hidden).flatten(2).transpose(1, 2))
        # In sides of the anchor: half of one each way is the anchor itself
        codes = torch.cat(distances, dim=1).float().clamp(max=math.log(16)).exp() / 2
        return anchors, torch.cat(logits, dim=1).float(), self.coder.decode(codes, anchors)

    @torch.no_grad()
    def select(
        self, logits: torch.Tensor, boxes: torch.Tensor, image_size: tuple[int, int], nms_threshold: float
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The proposals of every image, inside it, the best first: boxes and objectness (a probability)."""
        selected, scores = [], []
        for image_logits, image_boxes in zip(logits, boxes, strict=True):
            best = image_logits.topk(min(self.config.num_proposals, len(image_logits)))
            kept_boxes = clip_boxes_to_image(image_boxes[best.indices], image_size)
            objectness = best.values.sigmoid()
            if nms_threshold < 1:
                kept = nms(kept_boxes, objectness, nms_threshold)
                kept_boxes, objectness = kept_boxes[kept], objectness[kept]
            selected.append(kept_boxes)
            scores.append(objectness)
        return selected, scores

    def losses(
        self, anchors: torch.Tensor, logits: torch.Tensor, boxes: torch.Tensor, targets: list[Targets]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Centerness (binary cross-entropy) and box (generalised IoU) loss, means over the sampled anchors of all images."""
        matched, wanted = [], []
        for target in targets:
            if not len(target.boxes):
                matched.append(torch.zeros(len(anchors), dtype=torch.long, device=anchors.device))
                wanted.append(torch.zeros_like(anchors))
                continue
            matches = self.matcher(box_iou(target.boxes, anchors))
            gold = target.boxes[matches.clamp(min=0)]
            is_inside = self.coder.encode(anchors, gold).min(dim=-1).values > 0  # a location sees four sides around it
            state = torch.where(matches >= 0, torch.where(is_inside, 1, -1), torch.where(matches == -1, 0, -1))
            matched.append(state)
            wanted.append(gold)
        positive, negative = (torch.stack(masks).bool() for masks in self.sampler(matched))
        if not self.config.rpn_background_fraction:  # the sampler fills up with background
            negative = torch.zeros_like(negative)
        left, top, right, bottom = self.coder.encode(anchors, torch.stack(wanted)).clamp(min=1e-6).unbind(-1)
        horizontal = torch.minimum(left, right) / torch.maximum(left, right)
        vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom)
        centerness = torch.where(positive, (horizontal * vertical).sqrt(), 0.0)
        sampled = positive | negative
        count = max(1, int(sampled.sum()))
        objectness = nn.functional.binary_cross_entropy_with_logits(
            logits[sampled], centerness[sampled], reduction="sum"
        )
        box = generalized_box_iou_loss(boxes[positive], torch.stack(wanted)[positive], reduction="sum")
        return objectness / count, box / max(1, int(positive.sum()))


class RegionPooler(nn.Module):
    """RoIAlign from the map of the pyramid that fits a box's size (FPN, arXiv 1612.03144, eq. 1).

    torchvision's `MultiScaleRoIAlign` takes every stride for a power of two, which those of patches of 14 or 12 pixels are not.
    """

    def __init__(self, strides: list[float], output_size: int):
        super().__init__()
        self.strides = strides
        self.output_size = output_size
        levels = [round(math.log2(stride)) for stride in strides]
        self.mapper = LevelMapper(levels[0], levels[-1])

    def forward(self, maps: list[torch.Tensor], boxes: list[torch.Tensor]) -> torch.Tensor:
        """Features of shape `(boxes of all images, channels, output_size, output_size)`."""
        levels = self.mapper(boxes)
        image = torch.cat([torch.full_like(each[:, :1], index) for index, each in enumerate(boxes)])
        regions = torch.cat([image, torch.cat(boxes)], dim=1)  # (boxes, 5)
        size = (self.output_size, self.output_size)
        pooled = maps[0].new_zeros(len(regions), maps[0].shape[1], *size)
        for level, (level_map, stride) in enumerate(zip(maps, self.strides, strict=True)):
            rows = (levels == level).nonzero()[:, 0]
            # Its operator knows no bf16
            found = roi_align(level_map.float(), regions[rows], size, 1 / stride, aligned=True)
            pooled = pooled.index_copy(0, rows, found.to(pooled.dtype))
        return pooled


def average_regions(feature_map: torch.Tensor, boxes: list[torch.Tensor], size: int, stride: float) -> torch.Tensor:
    """Mean features of boxes, `(boxes of all images, channels)`: RoIAlign to `size x size`, then the mean."""
    pooled = roi_align(feature_map.float(), boxes, size, 1 / stride, aligned=True)
    return pooled.mean(dim=(-2, -1)).to(feature_map.dtype)


class BoxHead(nn.Module):
    """Class-agnostic box, and an embedding to compare with texts, of every region.

    The class score is the cosine similarity with a text embedding over a learned temperature.
    """

    def __init__(self, config, embedding_size: int, strides: list[float]):
        super().__init__()
        self.config = config
        self.pooler = RegionPooler(strides, config.box_pool_size)
        self.convolutions = _convolutions(config.channels, config.box_conv_layers)
        self.hidden = nn.Linear(config.channels * config.box_pool_size**2, config.box_hidden_size)
        self.embedding = nn.Linear(config.box_hidden_size, embedding_size)
        self.box = nn.Linear(config.box_hidden_size, 4)
        self.background_embedding = nn.Parameter(torch.empty(embedding_size))
        self.log_temperature = learned_scalar(0.0)
        self.coder = BoxCoder(tuple(config.box_coder_weights))
        self.matcher = Matcher(config.box_positive_iou, config.box_positive_iou)
        self.sampler = BalancedPositiveNegativeSampler(config.box_samples, config.box_positive_fraction)

    def forward(self, maps: list[torch.Tensor], boxes: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised embeddings `(boxes, embedding_size)` and box codes `(boxes, 4)`, in fp32."""
        pooled = self.convolutions(self.pooler(maps, boxes))
        hidden = nn.functional.relu(self.hidden(pooled.flatten(1)))
        embeddings = nn.functional.normalize(self.embedding(hidden).float(), dim=-1)
        return embeddings, self.box(hidden).float()

    def class_logits(self, embeddings: torch.Tensor, class_embeds: torch.Tensor) -> torch.Tensor:
        """Scores of background (first) and classes, `(..., regions, 1 + classes)`."""
        temperature = self.config.temperature * self.log_temperature.float().exp()
        return cosines(embeddings, self.background_embedding, class_embeds) / temperature

    def decode(self, codes: torch.Tensor, boxes: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        """Boxes that codes make of the pooled ones, inside the image."""
        return clip_boxes_to_image(self.coder.decode_single(codes, boxes), image_size)

    @torch.no_grad()
    def sample(
        self, proposals: list[torch.Tensor], targets: list[Targets]
    ) -> tuple[list[torch.Tensor], list[torch.LongTensor]]:
        """Regions to learn from, the true boxes among them: boxes, and their object (index into the targets, -1 for none)."""
        candidates, matches = [], []
        for boxes, target in zip(proposals, targets, strict=True):
            boxes = torch.cat([target.boxes, boxes])
            if len(target.boxes):
                matched = self.matcher(box_iou(target.boxes, boxes))
            else:
                matched = torch.full((len(boxes),), -1, device=boxes.device)
            candidates.append(boxes)
            matches.append(matched)
        positive, negative = self.sampler([(matched >= 0).long() for matched in matches])
        chosen = [(one | other).bool() for one, other in zip(positive, negative, strict=True)]
        return (
            [boxes[rows] for boxes, rows in zip(candidates, chosen, strict=True)],
            [matched[rows] for matched, rows in zip(matches, chosen, strict=True)],
        )

    def losses(
        self,
        embeddings: torch.Tensor,
        codes: torch.Tensor,
        class_embeds: torch.Tensor,
        boxes: torch.Tensor,
        true_boxes: torch.Tensor,
        labels: torch.LongTensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Classification (cross-entropy) and box (smooth L1 on codes) loss of sampled regions; label -1 is background."""
        logits = self.class_logits(embeddings, class_embeds)
        weights = torch.ones(logits.shape[-1], device=logits.device)
        weights[0] = self.config.background_weight
        classification = nn.functional.cross_entropy(logits, labels + 1, weight=weights)
        positive = labels >= 0
        wanted = self.coder.encode_single(true_boxes[positive], boxes[positive])
        box = nn.functional.smooth_l1_loss(codes[positive], wanted, beta=1 / 9, reduction="sum")
        return classification, box / max(1, len(labels))


def cosines(embeddings: torch.Tensor, background: torch.Tensor, class_embeds: torch.Tensor) -> torch.Tensor:
    """Cosine similarities with the background (first) and the classes, in fp32; `embeddings` are normalised."""
    background = nn.functional.normalize(background.float(), dim=-1).expand(*class_embeds.shape[:-2], 1, -1)
    texts = torch.cat([background, class_embeds.float()], dim=-2)
    with maybe_autocast(embeddings.device.type, enabled=False):
        return embeddings.float() @ texts.transpose(-1, -2)


class MaskHead(nn.Module):
    """Class-agnostic masks of regions (Mask R-CNN, arXiv 1703.06870), twice as fine as what is pooled."""

    def __init__(self, config, strides: list[float]):
        super().__init__()
        self.pooler = RegionPooler(strides, config.mask_pool_size)
        self.convolutions = _convolutions(config.channels, config.mask_conv_layers)
        self.enlarge = nn.ConvTranspose2d(config.channels, config.channels, 2, stride=2)
        self.mask = nn.Conv2d(config.channels, 1, 1)

    def forward(self, maps: list[torch.Tensor], boxes: list[torch.Tensor]) -> torch.Tensor:
        """Logits of shape `(boxes of all images, 1, 2 * mask_pool_size, 2 * mask_pool_size)`."""
        return self.mask(nn.functional.relu(self.enlarge(self.convolutions(self.pooler(maps, boxes))))).float()

    def loss(
        self, logits: torch.Tensor, boxes: list[torch.Tensor], masks: list[torch.Tensor], objects: list[torch.Tensor]
    ) -> torch.Tensor:
        """Binary cross-entropy with the true masks, cut to the boxes."""
        labels = [torch.zeros(len(each), dtype=torch.long, device=each.device) for each in masks]
        return maskrcnn_loss(logits, boxes, masks, labels, objects)


def fuse_scores(
    detection: torch.Tensor,
    image_text: torch.Tensor,
    is_base: torch.Tensor | None,
    base_exponent: float,
    novel_exponent: float,
) -> torch.Tensor:
    """Geometric mean of two opinions on what a region shows (F-VLM, arXiv 2209.15639, eq. 3), over background and classes.

    In logarithms, where probabilities too small for their product to be anything still compare.

    The exponent is the weight of the image-text model: small for classes that the detector was trained on, large for others. The
    background keeps the detector's score; then all are scaled to a sum of 1.

    Args:
        detection, image_text (`torch.Tensor` of shape `(..., 1 + classes)`):
            Logits of the two, the background first; a softmax makes the probabilities that are fused.
        is_base (`torch.BoolTensor` of shape `(..., classes)`, *optional*): Which classes the detector was trained on. Default:
            not known, the novel exponent for all.
        base_exponent, novel_exponent (`float`): Between 0 (the detector alone) and 1 (the image-text model alone).

    Returns:
        Probabilities of shape `(..., 1 + classes)`.
    """
    own, other = detection.log_softmax(dim=-1), image_text.log_softmax(dim=-1)
    exponent = torch.tensor(novel_exponent, dtype=own.dtype, device=own.device)
    if is_base is not None:
        exponent = torch.where(is_base, base_exponent, exponent)
    classes = (1 - exponent) * own[..., 1:] + exponent * other[..., 1:]
    return torch.cat([own[..., :1], classes], dim=-1).softmax(dim=-1)


def suppress(boxes: torch.Tensor, scores: torch.Tensor, threshold: float, num_candidates: int) -> torch.Tensor:
    """Scores of one image after non-maximum suppression within every class: 0 for what was suppressed or not looked at.

    Args:
        boxes (`torch.Tensor` of shape `(regions, 4)`): Boxes of all classes.
        scores (`torch.Tensor` of shape `(regions, classes)`): Scores.
        threshold (`float`): IoU with a better box of the class above which a box goes.
        num_candidates (`int`): Best pairs of region and class that are looked at; the others become 0 too.
    """
    best = scores.flatten().topk(min(num_candidates, scores.numel()))
    regions, classes = best.indices // scores.shape[1], best.indices % scores.shape[1]
    # It moves the boxes of every class by a multiple of the class, so small numbers keep small boxes exact.
    numbers = classes.unique(return_inverse=True)[1]
    kept = batched_nms(boxes[regions], best.values, numbers, threshold)
    result = torch.zeros_like(scores)
    result[regions[kept], classes[kept]] = best.values[kept]
    return result


__all__ = [
    "BoxHead",
    "MaskHead",
    "RegionPooler",
    "RegionProposals",
    "SimpleFeaturePyramid",
    "Targets",
    "average_regions",
    "cosines",
    "fuse_scores",
    "require_torchvision",
    "suppress",
]
