"""A tokenizer trained on the captions themselves, for data sets that need no web-scale vocabulary."""

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast


PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"


def train_tokenizer(captions: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that writes `<bos> text <eos>` and pads on the right with id 0.

    Args:
        captions (`Iterable[str]`): Training captions.
        vocab_size (`int`): Largest vocabulary, in tokens; small data sets end up with fewer.
        max_length (`int`): Context length in tokens, BOS and EOS included.

    Raises:
        ValueError: If there is no caption to train on.
    """
    captions = [caption for caption in captions if caption.strip()]
    if not captions:
        raise ValueError("`captions` holds no text to train a tokenizer on.")
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    # The space that starts every text helps words share tokens, and nobody wants to see it.
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        padding_side="right",
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        model_input_names=["input_ids", "attention_mask"],
    )


def load_tokenizer(name: str, max_length: int) -> PreTrainedTokenizerFast:
    """Load any fast tokenizer and make it write `BOS text EOS`, with a padding token of its own.

    EOS is a training target and padding is not, so tokens that share an id (CLIP's padding and EOS, GPT-2's BOS and EOS)
    get new ones.

    Args:
        name (`str`): Folder or Hub name.
        max_length (`int`): Context length in tokens, BOS and EOS included.

    Raises:
        ValueError: If the tokenizer is not a fast one, whose template can be set.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(name, model_max_length=max_length, padding_side="right")
    if not tokenizer.is_fast:
        raise ValueError(f"`tokenizer` {name!r} is a {type(tokenizer).__name__}, expected a fast tokenizer.")
    taken: list[str] = []
    for role, text in (("eos_token", EOS), ("bos_token", BOS), ("pad_token", PAD)):
        if getattr(tokenizer, role) in (None, *taken):
            tokenizer.add_special_tokens({role: text})
        taken.append(getattr(tokenizer, role))
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(bos, tokenizer.bos_token_id), (eos, tokenizer.eos_token_id)]
    )
    return tokenizer


__all__ = ["load_tokenizer", "train_tokenizer"]
