"""Processor of MaMMUT: images, videos, texts, and questions with answers."""

from typing import TypedDict

import torch
from transformers.feature_extraction_utils import BatchFeature

from .detection_inputs import class_texts, detection_labels, select_detections
from .pictures import flatten
from .self_contained_processor import PaddedTextKwargs, SelfContainedProcessor, list_of_texts
from .video_frames import read_frames, split_clips


# How the paper writes questions is not printed.
QUESTION_TEMPLATE = "question: {question} answer:"


class _NoVideosKwargs(TypedDict, total=False):
    """Frames are pictures: their options are those of images."""


class MammutProcessorKwargs(PaddedTextKwargs, total=False):
    videos_kwargs: _NoVideosKwargs  # type: ignore[misc]

    _defaults = PaddedTextKwargs._defaults  # which a `TypedDict` does not inherit


class MammutProcessor(SelfContainedProcessor):
    """Turn images or videos, and texts or questions, into model inputs.

    - `text`: captions and caption prompts as `BOS ... EOS`, padded on the right; `generate` drops the closing EOS.
    - `questions`: prompts as `BOS template`, padded on the left, ready for `generate`; the answer is what comes behind
      `input_ids.shape[1]` tokens.
    - `questions` and `answers`: `BOS template answer EOS`, padded on the right, with `labels` that supervise the answer
      (and EOS) alone.
    - `text` as one list of classes per image: classes for the detector, all images after one another; with `annotations`, its
      `labels` too.
    - `videos`: frames pass through the image processor one by one, so a clip looks to the model as its pictures would.

    Args:
        image_processor (`CLIPImageProcessor`): Resizes, crops and normalises. That of a detector (`Owlv2ImageProcessor`) pads to
            a square instead.
        tokenizer (`PreTrainedTokenizerBase`): Any tokenizer with a padding token, that adds BOS and EOS.
        num_frames (`int`, *optional*, defaults to 32): Frames to sample from every clip; all of them if `None`.
        fps (`float`, *optional*): Sample a file at this rate instead of uniformly.
        question_template (`str`): How a question becomes a prompt.
        class_templates (`list[str]`): What is asked of a class, with `{}` for its name; the embeddings of several are averaged.
        base_classes (`list[str]`, *optional*): Classes that a detector had boxes of in training; it trusts its own score of
            these more.
    """

    valid_processor_kwargs = MammutProcessorKwargs

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        num_frames: int | None = 32,
        fps: float | None = None,
        question_template: str = QUESTION_TEMPLATE,
        class_templates: list[str] | tuple[str, ...] = ("{}",),
        base_classes: list[str] | None = None,
        **kwargs,
    ):
        if "{question}" not in question_template:
            raise ValueError(f"`question_template` must contain {{question}}, got {question_template!r}.")
        if not class_templates or any("{}" not in template for template in class_templates):
            raise ValueError(f"`class_templates` must be at least one text with {{}}, got {class_templates!r}.")
        self.num_frames = num_frames
        self.fps = fps
        self.question_template = question_template
        self.class_templates = list(class_templates)
        self.base_classes = base_classes
        super().__init__(image_processor, tokenizer, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "pixel_values_videos"]

    def __call__(
        self,
        images=None,
        text=None,
        videos=None,
        questions: str | list[str] | None = None,
        answers: str | list[str] | None = None,
        annotations: dict | list[dict] | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: One picture or many, as [`~pictures.to_rgb`] takes them: PIL images, arrays, tensors, paths, URLs.
            text (`str`, `list[str]` or `list[list[str]]`): Captions or caption prompts; or the classes of every image.
            videos: One clip or a list: paths, lists of frames, or arrays `(frames, 3, height, width)`. Options of the image
                processor hold for their frames.
            questions (`str` or `list[str]`): Instead of `text`: one per image or clip.
            answers (`str` or `list[str]`): One per question, for training.
            annotations (`dict` or `list[dict]`): Objects of every image in COCO's form, for training a detector: `annotations`
                with `bbox` (left, top, width, height in pixels of the upright image) and `category_id` (index of a class).
            kwargs: As for any processor: `return_tensors`, `padding`, `truncation` (of `text`), ...; and `num_frames`, `fps`
                instead of the processor's own.

        Returns:
            [`BatchFeature`] with `pixel_values` or `pixel_values_videos`, `input_ids`, `attention_mask`, `labels`; for classes
            also `is_base`, of shape `(images, classes)`, where the processor has `base_classes`, and `class_mask`, of the same
            shape, where some images have fewer classes than others: false for what fills them up.

        Raises:
            ValueError: If arguments exclude one another, differ in number, or hold what cannot be read.
        """
        num_frames, fps = kwargs.pop("num_frames", None), kwargs.pop("fps", None)
        if text is not None and questions is not None:
            raise ValueError("Pass either `text` or `questions`, got both.")
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"`num_frames` must be at least 1, got {num_frames}.")
        if fps is not None and not fps > 0:
            raise ValueError(f"`fps` must be positive, got {fps}.")
        if answers is not None and questions is None:
            raise ValueError("`answers` need `questions`.")
        if annotations is not None and images is None:
            raise ValueError("`annotations` need `images`.")
        if kwargs.get("videos_kwargs"):
            raise ValueError(
                "`videos_kwargs` has no reader: pass `num_frames`, `fps` and image options by themselves."
            )
        kwargs = self._flat(kwargs)
        images = None if images is None else self._pictures(images, kwargs)
        data: dict = {}
        if isinstance(text, (list, tuple)) and text and not isinstance(text[0], str):
            data |= self._tokenize_classes(
                text, images, kwargs.get("padding", "longest"), kwargs.get("truncation", False)
            )
            text = None
        if annotations is not None:
            self._check_padding(kwargs)
            sizes = [(image.height, image.width) for image in flatten(images)]
            entries = [annotations] if isinstance(annotations, dict) else list(annotations)
            data["labels"] = detection_labels(entries, sizes, self.image_processor.size["height"])
        if images is not None or text is not None or (videos is None and questions is None and not data):
            data |= super().__call__(images=images, text=text, **kwargs)
        tensors = kwargs.get("return_tensors")
        if videos is not None:
            data["pixel_values_videos"] = self._read_videos(
                videos, num_frames or self.num_frames, self.fps if fps is None else fps, kwargs
            )
        if questions is not None:
            data |= self._tokenize_questions(questions, answers, kwargs.get("padding", "longest"))
        labels = data.pop("labels") if annotations is not None else None
        batch = BatchFeature(data, tensor_type=tensors)
        if labels is not None:
            batch["labels"] = labels
        return batch

    def _tokenize_classes(self, text, images, padding, truncation) -> dict:
        if images is not None and len(text) != len(list(flatten(images))):
            raise ValueError(
                f"`text` must list classes for every image, got {len(text)} lists for {len(list(flatten(images)))} images."
            )
        texts, count = class_texts(text, self.class_templates)
        self._check_text(texts, truncation=truncation)
        padding = "longest" if padding is True else padding
        data = self.tokenizer(texts, padding=padding, truncation=truncation, return_tensors="pt")
        num_templates = len(self.class_templates)
        if num_templates > 1:
            data = {name: value.unflatten(0, (-1, num_templates)) for name, value in data.items()}
        classes = {"input_ids": data["input_ids"], "attention_mask": data["attention_mask"]}
        if any(len(names) < count for names in text):
            classes["class_mask"] = torch.tensor([[index < len(names) for index in range(count)] for names in text])
        if self.base_classes is not None:
            known = set(self.base_classes)
            rows = [[name in known for name in names] + [False] * (count - len(names)) for names in text]
            classes["is_base"] = torch.tensor(rows)
        return classes

    def post_process_grounded_object_detection(
        self,
        outputs,
        threshold: float = 0.1,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        text_labels: list[list[str]] | None = None,
        top_k: int = 300,
    ) -> list[dict]:
        """Objects of every image.

        Args:
            outputs (`MammutObjectDetectionOutput`): Of [`MammutForObjectDetection`].
            threshold (`float`): Least score.
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor` of shape `(images, 2)`, *optional*):
                Height and width of the upright images before the processor, in pixels. Default: boxes stay shares of the longer side.
            text_labels (`list[list[str]]`, *optional*): The classes of every image.
            top_k (`int`): Most objects per image.

        Returns:
            `list[dict]`: `scores` `(objects,)`, the best first; `labels` `(objects,)`, indices of classes; `boxes`
            `(objects, 4)`, left, top, right, bottom in pixels of the image; `text_labels`, names; of a model with a mask head
            `masks` `(objects, size, size)`, probabilities within the box. A box may have several classes.

        Raises:
            ValueError: If `target_sizes` or `text_labels` do not fit the outputs.
        """
        return select_detections(outputs, threshold, target_sizes, text_labels, top_k)

    def _read_videos(self, videos, num_frames: int | None, fps: float | None, kwargs: dict) -> torch.Tensor:
        merged = self._merge_kwargs(MammutProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        given = {name: value for name, value in merged["images_kwargs"].items() if name != "return_tensors"}
        clips = []
        for index, clip in enumerate(split_clips(videos) or [[]]):
            options = dict(given)
            frames = self._pictures(read_frames(clip, num_frames, fps), options, f"videos[{index}]")
            if any(isinstance(frame, list) for frame in frames):
                raise ValueError(
                    f"`videos[{index}]` holds lists of frames within a list; expected the frames of one clip."
                )
            # Resizing and cropping cost more than all else, also where they change nothing.
            if not options and not self._must_resize(frames):
                options = {"do_resize": False, "do_center_crop": False}
            clips.append(self.image_processor(frames, return_tensors="pt", **options)["pixel_values"])
        if len({len(clip) for clip in clips}) > 1:
            raise ValueError(
                f"`videos` have {sorted({len(clip) for clip in clips})} frames; a batch needs equally many. Set "
                "`num_frames`."
            )
        return torch.stack(clips)  # (batch, frames, channels, height, width)

    def _must_resize(self, frames: list) -> bool:
        """Whether frames have another size than the image processor makes."""
        size, crop = self.image_processor.size, self.image_processor.crop_size
        final = (size.get("shortest_edge"),) * 2
        if (crop["height"], crop["width"]) != final:
            return True
        return any(frame.size != final for frame in frames)

    def _check_padding(self, options: dict) -> None:
        """Boxes are shares of a square that is padded at the right and the bottom, as OWLv2's image processor does."""
        pads = any(cls.__name__.startswith("Owlv2ImageProcessor") for cls in type(self.image_processor).__mro__)
        changed = {"do_pad", "do_resize", "do_center_crop", "size", "crop_size"} & options.keys()
        if not pads or not self.image_processor.do_pad or self.image_processor.do_center_crop or changed:
            raise ValueError(
                "`annotations` need an image processor that pads to a square and crops nothing (Owlv2ImageProcessor), as it was "
                f"saved; got {type(self.image_processor).__name__} and options {sorted(changed)}."
            )

    def _tokenize_questions(self, questions, answers, padding) -> dict:
        questions = list_of_texts(questions, "questions")
        prompts = [self.question_template.format(question=question) for question in questions]
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        rows = [[bos, *ids] for ids in self.tokenizer(prompts, add_special_tokens=False).input_ids]
        lengths = [len(row) for row in rows]
        if answers is not None:
            answers = list_of_texts(answers, "answers")
            if len(answers) != len(questions):
                raise ValueError(
                    f"`answers` must hold one answer per question, got {len(answers)} answers and {len(questions)} "
                    "questions."
                )
            found = self.tokenizer(answers, add_special_tokens=False).input_ids
            rows = [[*row, *ids, eos] for row, ids in zip(rows, found, strict=True)]
        longest = self.tokenizer.model_max_length
        for index, row in enumerate(rows):
            if len(row) > longest:
                raise ValueError(
                    f"`questions[{index}]` takes {len(row)} tokens (its answer included, if there is one), the context "
                    f"is {longest} tokens: {questions[index][:60]!r}. Shorten it."
                )
        side = "left" if answers is None else "right"
        padded = self.tokenizer.pad({"input_ids": rows}, padding=padding, padding_side=side)
        data = {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}
        if answers is not None:
            width = len(data["input_ids"][0])
            data["labels"] = [
                [-100] * length + row[length:] + [-100] * (width - len(row))
                for row, length in zip(rows, lengths, strict=True)
            ]
        return data


__all__ = ["QUESTION_TEMPLATE", "MammutProcessor"]
