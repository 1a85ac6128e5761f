"""Processor of VW-LMM: conversations with images become token ids with one placeholder per image patch."""

from transformers import AddedToken, AutoImageProcessor, AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs

from .pictures import flatten
from .self_contained_processor import SelfContainedProcessor, list_of_texts


IMAGE_TOKEN = "<image>"

# Makes plain texts of messages whose content is a list of blocks; a template for texts follows it.
_PLAIN_TEXTS = """\
{%- set plain = namespace(messages=[]) -%}
{%- for message in messages -%}
  {%- if message['content'] is string -%}
    {%- set content = message['content'] -%}
  {%- else -%}
    {%- set content -%}
      {%- for block in message['content'] -%}
        {%- if block['type'] == 'image' -%}{{ '<image>\\n' }}{%- else -%}{{ block['text'] }}{%- endif -%}
      {%- endfor -%}
    {%- endset -%}
  {%- endif -%}
  {%- set plain.messages = plain.messages + [{'role': message['role'], 'content': content}] -%}
{%- endfor -%}
{%- set messages = plain.messages -%}
"""

_VICUNA = """\
{%- if messages[0]['role'] == 'system' -%}
  {{- messages[0]['content'] + ' ' -}}
  {%- set messages = messages[1:] -%}
{%- else -%}
  {{- "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and " -}}
  {{- "polite answers to the user's questions. " -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {{- 'USER: ' + message['content'] + ' ' -}}
  {%- else -%}
    {{- 'ASSISTANT: ' + message['content'] + eos_token -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"""

_MISTRAL = """\
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {{- '[INST] ' + message['content'] + ' [/INST]' -}}
  {%- else -%}
    {{- message['content'] + eos_token -}}
  {%- endif -%}
{%- endfor -%}"""


def with_images(template: str) -> str:
    """A chat template for texts, made to read messages of text and image blocks: every image stands as `<image>` and a newline."""
    return _PLAIN_TEXTS + template


# The templates of the released models, by their names there.
CHAT_TEMPLATES = {"vicuna_v1": with_images(_VICUNA), "mistral": with_images(_MISTRAL)}


# Options of tokenizers that ask for more than ids.
_UNREAD = {
    "return_length", "return_overflowing_tokens", "return_special_tokens_mask", "return_token_type_ids", "stride",
    "is_split_into_words", "text_pair", "text_target",
}  # fmt: skip


class VwLmmProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {"text_kwargs": {"padding": False}}  # noqa: RUF012


class VwLmmProcessor(SelfContainedProcessor):
    """Turn conversations and images into model inputs.

    As in the released code, the text between two images is tokenised on its own: a whole string with `<image>` as special token
    gives other ids with some tokenizers.

    Args:
        image_processor: Any image processor. The released models pad images to squares (`LlavaImageProcessor`, `do_pad`).
        tokenizer (`PreTrainedTokenizerBase`): Any tokenizer that knows `image_token`.
        chat_template (`str` or `dict[str, str]`, *optional*):
            `"vicuna_v1"`, `"mistral"`, or a Jinja template, or several by their names. Default: the tokenizer's own.
        image_seq_length (`int`): Placeholders of one image: patches that the model's vision tower makes.
        image_token (`str`): Stands for one image in a text, and for one patch in the ids.

    Raises:
        ValueError: If the tokenizer does not know `image_token`, or there is no such template.
    """

    valid_processor_kwargs = VwLmmProcessorKwargs

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template: str | dict[str, str] | None = None,
        image_seq_length: int = 576,
        image_token: str = IMAGE_TOKEN,
        **kwargs,
    ):
        if tokenizer is not None and image_token not in tokenizer.get_vocab():
            raise ValueError(
                f"`tokenizer` has no token {image_token!r}. Add it (`tokenizer.add_tokens`), or let "
                "`VwLmmProcessor.from_vision_text_pretrained` do so."
            )
        if isinstance(chat_template, str) and chat_template in CHAT_TEMPLATES:
            chat_template = CHAT_TEMPLATES[chat_template]
        elif isinstance(chat_template, str) and "{" not in chat_template and len(chat_template.split()) < 2:
            raise ValueError(
                f"Unknown `chat_template` {chat_template!r}. Known: {', '.join(sorted(CHAT_TEMPLATES))}, or a Jinja template."
            )
        elif chat_template is None and tokenizer is not None and tokenizer.chat_template is not None:
            own = tokenizer.chat_template
            named = isinstance(own, dict)
            chat_template = {name: with_images(each) for name, each in own.items()} if named else with_images(own)
        self.image_seq_length = image_seq_length
        self.image_token = image_token
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    @property
    def image_token_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(self.image_token)

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str,
        text: str,
        image_seq_length: int,
        chat_template: str | None = None,
        text_kwargs: dict | None = None,
        vision_kwargs: dict | None = None,
    ) -> "VwLmmProcessor":
        """The processor for `VwLmmForCausalLM.from_vision_text_pretrained` of the same two checkpoints.

        Args:
            vision, text (`str`): Folders or Hub names.
            image_seq_length (`int`): As in the model's configuration.
            chat_template (`str`, *optional*): As above.
            text_kwargs, vision_kwargs (`dict`, *optional*): For the tokenizer and the image processor: `revision`, `token`, or
                e.g. `{"gguf_file": ...}`.
        """
        # Not at the top: without torchvision transformers prints a warning when this name is imported.
        from transformers import LlavaImageProcessor

        tokenizer = AutoTokenizer.from_pretrained(text, **(text_kwargs or {}))
        tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)])
        image_processor = AutoImageProcessor.from_pretrained(vision, **(vision_kwargs or {}))
        squares = LlavaImageProcessor(
            size=dict(image_processor.size),
            crop_size=dict(image_processor.crop_size or image_processor.size),
            image_mean=image_processor.image_mean,
            image_std=image_processor.image_std,
            resample=image_processor.resample,
            do_pad=True,
        )
        return cls(squares, tokenizer, chat_template, image_seq_length)

    def __call__(self, images=None, text=None, **kwargs) -> BatchFeature:
        """Token ids and pixel values of texts with images.

        Args:
            images: An image, a list of images in reading order, or a list of them for every text, each as [`~pictures.to_rgb`]
                takes it: PIL images, arrays, tensors, paths, URLs.
            text (`str` or `list[str]`): Texts in which every image stands as `image_token`.
            kwargs: Of tokenizers `padding`, `padding_side`, `pad_to_multiple_of`, `truncation`, `max_length`, `add_special_tokens`,
                `return_tensors`, `return_offsets_mapping` (characters of `text`; nothing for placeholders) and
                `return_mm_token_type_ids` (1 for placeholders); and all of the image processor.

        Returns:
            [`BatchFeature`] with `input_ids`, `attention_mask` and, where there are images, `pixel_values` of shape
            `(num_images, num_channels, height, width)`.

        Raises:
            ValueError: If a text and its images do not match, or a text is too long, or truncation would cut an image.
        """
        if text is None:
            raise ValueError("`text` is missing; images stand in it as `image_token`.")
        texts = list_of_texts(text, "text")
        self._check_options(kwargs)
        options = self._merge_kwargs(VwLmmProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        for name in options["text_kwargs"].keys() & _UNREAD:
            if options["text_kwargs"][name]:
                raise ValueError(
                    f"`{name}` has no meaning for texts that are tokenised in parts, around their images."
                )
        features = self._image_features(texts, images, **options["images_kwargs"])
        rows, spans = zip(*(self._tokenize(row, **options["text_kwargs"]) for row in texts), strict=True)
        beside = {}
        if options["text_kwargs"].pop("return_offsets_mapping", False):
            beside["offset_mapping"] = spans, (0, 0)
        if options["text_kwargs"].pop("return_mm_token_type_ids", False):
            beside["mm_token_type_ids"] = [[int(token == self.image_token_id) for token in row] for row in rows], 0
        return self._pad(list(rows), features, beside, **options["text_kwargs"])

    def encode_conversations(
        self, conversations: list[list[dict]], images: list[list] | None = None, **kwargs
    ) -> BatchFeature:
        """Model inputs and labels of finished conversations. Only what the assistant says is supervised, its end included.

        Args:
            conversations (`list[list[dict]]`): Messages with `role` and `content`: a text, or blocks of type text and image.
            images (`list[list]`, *optional*): Images of every conversation, for contents that are texts with `image_token`.
                Default: those in the blocks.
            kwargs: As in `__call__`.

        Returns:
            [`BatchFeature`] as from `__call__`, with `labels`; -100 is not supervised.

        Raises:
            ValueError: As `__call__`, and if the template does not let a conversation grow turn by turn.
        """
        for index, content in ((i, each["content"]) for i, messages in enumerate(conversations) for each in messages):
            if not isinstance(content, (str, list, tuple)):
                raise ValueError(
                    f"`conversations[{index}]` has a message with the content {content!r}; expected a text or a list of blocks."
                )
        if images is None:
            images = [[_image_of(block) for block in blocks] for blocks in map(_image_blocks, conversations)]
        self._check_options(kwargs)
        options = self._merge_kwargs(VwLmmProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        texts, spans = zip(*(self._render(messages) for messages in conversations), strict=True)
        features = self._image_features(list(texts), images if any(images) else None, **options["images_kwargs"])
        rows, labels, image = [], [], self.image_token_id
        for row, answers in zip(texts, spans, strict=True):
            ids, places = self._tokenize(row, **options["text_kwargs"])
            rows.append(ids)
            labels.append(
                [
                    token if token != image and any(first <= start < last for first, last in answers) else -100
                    for token, (start, _) in zip(ids, places, strict=True)
                ]
            )
        return self._pad(rows, features, {"labels": (labels, -100)}, **options["text_kwargs"])

    def _render(self, messages: list[dict]) -> tuple[str, list[tuple[int, int]]]:
        """A conversation as text, and from where to where the assistant speaks in it."""
        whole = self.apply_chat_template(messages, tokenize=False)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.apply_chat_template(messages[:index], tokenize=False, add_generation_prompt=True)
            after = self.apply_chat_template(messages[: index + 1], tokenize=False)
            if not (after.startswith(before) and whole.startswith(after)):
                raise ValueError(
                    "The chat template rewrites earlier turns, so answers cannot be found in it: after "
                    f"{before[-40:]!r} it wrote {after[len(before) - 40 :][:80]!r}."
                )
            spans.append((len(before), len(after.rstrip())))
        return whole, spans

    def _tokenize(self, text: str, add_special_tokens: bool = True, truncation=False, max_length=None, **kwargs):
        """Token ids of one text, chunk by chunk, and from which to which character each goes."""
        tokenizer = self.tokenizer
        ids, places = [], []
        bos = tokenizer.bos_token_id
        # What the tokenizer itself puts in front of a text, unless the template already has
        adds_bos = add_special_tokens and bos is not None and tokenizer("").input_ids[:1] == [bos]
        if adds_bos and not text.startswith(tokenizer.bos_token):
            ids, places = [bos], [(0, 0)]
        position = 0
        for index, chunk in enumerate(text.split(self.image_token)):
            if index > 0:
                ids += [self.image_token_id] * self.image_seq_length
                places += [(0, 0)] * self.image_seq_length
                position += len(self.image_token)
            if chunk:
                encoded = tokenizer(chunk, add_special_tokens=False, return_offsets_mapping=True)
                ids += encoded.input_ids
                places += [(position + start, position + end) for start, end in encoded.offset_mapping]
                position += len(chunk)
        longest = max_length or tokenizer.model_max_length
        if len(ids) > longest:
            if not truncation:
                raise ValueError(
                    f"A text has {len(ids)} tokens with its images, more than `max_length` ({longest}): {text[:60]!r}. Shorten it "
                    "or pass `truncation=True`."
                )
            if self.image_token_id in ids[longest:]:
                raise ValueError(
                    f"`truncation` to {longest} tokens would cut an image ({self.image_seq_length} tokens) of {text[:60]!r}."
                )
            ids, places = ids[:longest], places[:longest]
        return ids, places

    def _image_features(self, texts: list[str], images, **kwargs) -> dict:
        """Pixel values of all images, once they match the texts."""
        counts = [text.count(self.image_token) for text in texts]
        given = [] if images is None else list(flatten(images))
        if given:
            images = self._pictures(images, kwargs)
            given = list(flatten(images))
        if isinstance(images, (list, tuple)) and images and all(isinstance(row, (list, tuple)) for row in images):
            per_text = [len(list(flatten(row))) if row else 0 for row in images]
            if len(per_text) != len(texts):
                raise ValueError(f"`images` hold lists for {len(per_text)} texts, got {len(texts)} texts.")
            for index, (count, number) in enumerate(zip(counts, per_text, strict=True)):
                if count != number:
                    raise ValueError(
                        f"`text[{index}]` has {count} {self.image_token}, but `images[{index}]` has {number}: {texts[index][:60]!r}."
                    )
        if len(given) != sum(counts):
            raise ValueError(
                f"`text` holds {self.image_token} {sum(counts)} times (by text: {counts}), got {len(given)} images."
            )
        if not given:
            return {}
        return dict(self.image_processor(given, **kwargs))

    def _pad(self, rows, features: dict, beside: dict, padding=False, return_tensors=None, **kwargs) -> BatchFeature:
        """A batch of token ids; `beside` them stand lists with one value per token, and what fills these up."""
        side = kwargs.get("padding_side") or self.tokenizer.padding_side
        padded = self.tokenizer.pad(
            {"input_ids": rows},
            padding=padding,
            max_length=kwargs.get("max_length"),
            pad_to_multiple_of=kwargs.get("pad_to_multiple_of"),
            padding_side=side,
        )
        data = {**padded, **features}
        for name, (values, nothing) in beside.items():
            data[name] = []
            for row, ids in zip(values, padded["input_ids"], strict=True):
                filler = [nothing] * (len(ids) - len(row))
                data[name].append(filler + row if side == "left" else row + filler)
        return BatchFeature(data, tensor_type=return_tensors)


def _image_of(block: dict):
    for key in ("image", "url", "path"):
        if block.get(key) is not None:
            return block[key]
    raise ValueError(f"A block of type image needs `image`, `url` or `path`, got {', '.join(map(repr, block))}.")


def _image_blocks(messages: list[dict]) -> list[dict]:
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return [block for content in contents for block in content if block["type"] == "image"]


__all__ = ["CHAT_TEMPLATES", "VwLmmProcessor", "with_images"]
