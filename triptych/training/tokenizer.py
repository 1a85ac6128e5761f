"""A tokenizer trained on the captions themselves, for data sets that need no web-scale vocabulary."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


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
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)],
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


__all__ = ["train_tokenizer"]
