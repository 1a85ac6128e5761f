"""Several short texts in one row, so that less of a batch is padding."""

import torch


def pack_rows(batch: dict[str, torch.Tensor], num_images: list[int], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Put texts of a batch behind one another in fewer rows, none longer than the longest text.

    Positions start anew with every text. By that transformers' language models see, where there is no `attention_mask`, that
    texts do not attend to one another; models of this package also see that no text predicts the beginning of the next. So losses
    are those of the batch as it was.

    Args:
        batch (`dict`): `input_ids`, `attention_mask` and `labels`, padded on the right; `pixel_values` of all images in reading order, if
            there are any.
        num_images (`list[int]`): Of every text.
        pad_token_id (`int`): What fills up rows.

    Returns:
        `dict` of `input_ids`, `labels` and `position_ids` of shape `(num_rows, length of the longest text)`, and `pixel_values` in the new
        reading order.
    """
    lengths = batch["attention_mask"].sum(-1).tolist()
    # First fit decreasing; ties as they come.
    capacity = max(lengths)
    rows: list[list[int]] = []
    room: list[int] = []
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        place = next((index for index, left in enumerate(room) if left >= lengths[text]), None)
        if place is None:
            rows.append([])
            room.append(capacity)
            place = len(rows) - 1
        rows[place].append(text)
        room[place] -= lengths[text]
    shape = (len(rows), capacity)
    packed = {
        "input_ids": torch.full(shape, pad_token_id),
        "labels": torch.full(shape, -100),
        "position_ids": torch.zeros(shape, dtype=torch.long),  # so that what fills up has nothing before it
    }
    for index, texts in enumerate(rows):
        start = 0
        for text in texts:
            length = lengths[text]
            there, here = (index, slice(start, start + length)), (text, slice(0, length))
            packed["input_ids"][there] = batch["input_ids"][here]
            packed["labels"][there] = batch["labels"][here]
            packed["position_ids"][there] = torch.arange(length)
            start += length
    if "pixel_values" in batch:
        images = batch["pixel_values"].split(num_images)
        packed["pixel_values"] = torch.cat([images[text] for texts in rows for text in texts])
    return packed


__all__ = ["pack_rows"]
