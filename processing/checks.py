"""What processors refuse: texts longer than the context."""


def check_text(text, tokenizer, **kwargs) -> None:
    """Refuse no text at all, and texts longer than the context unless `truncation` is asked for.

    Raises:
        ValueError: If there is no text, or one is too long.
    """
    texts = [text] if isinstance(text, str) else text
    if not texts:
        raise ValueError("`text` is empty; expected at least one text.")
    options = {**kwargs, **kwargs.get("text_kwargs", {})}
    if options.get("truncation"):
        return
    longest = options.get("max_length") or tokenizer.model_max_length
    for index, ids in enumerate(tokenizer(texts, padding=False).input_ids):
        if len(ids) > longest:
            raise ValueError(
                f"`text[{index}]` has {len(ids)} tokens, the context is {longest} tokens: {texts[index][:60]!r}. "
                "Shorten it or pass `truncation=True`."
            )


__all__ = ["check_text"]
