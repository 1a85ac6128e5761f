"""Names of emoji, as Unicode's CLDR writes them, of a sequence of code points or of what a package calls its file."""

import re
import unicodedata
from collections.abc import Mapping
from functools import cache


SKIN_TONE = r"(?:light|medium-light|medium|medium-dark|dark) skin tone"


def caption_of(sequence: str) -> str | None:
    """Caption of an emoji sequence, written as CLDR writes it, or `None` if Unicode has no name for it.

    Example: `"woman firefighter: medium skin tone"`, `"flag: Kuwait"`, `"red heart"`.
    """
    from emoji import EMOJI_DATA

    plain = sequence.replace("\ufe0f", "")
    entry = next((EMOJI_DATA[key] for key in (sequence, plain, plain + "\ufe0f") if key in EMOJI_DATA), None)
    if entry is None:
        return None
    name = entry["en"].strip(":").replace("_", " ")
    is_flag = "\U0001f1e6" <= sequence[0] <= "\U0001f1ff" or "\U000e007f" in sequence
    if is_flag:
        return f"flag: {name}"
    # "woman dark skin tone red hair" -> "woman: dark skin tone, red hair"
    parts = [part.strip() for part in re.split(f"({SKIN_TONE})", name) if part.strip()]
    if len(parts) > 1 and not re.fullmatch(SKIN_TONE, parts[0]):
        return f"{parts[0]}: {', '.join(parts[1:])}"
    return name


def sequence_of(code: str) -> str:
    """The sequence with these code points, as file names give them: `"1f469-1f3fd-200d-1f692"`."""
    return "".join(chr(int(point, 16)) for point in code.split("-"))


def letters_of(name: str) -> str:
    """Letters and digits of a name, in lower case, which every way of writing it shares."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@cache
def _captions_by_letters(codes: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Captions by the letters of a name: CLDR's names win over those of packages, these over aliases and characters' names."""
    from emoji import EMOJI_DATA

    captions = {sequence: caption_of(sequence) for sequence in EMOJI_DATA}
    named = {sequence: caption for sequence, caption in captions.items() if caption is not None}
    found = {letters_of(EMOJI_DATA[sequence]["en"]): caption for sequence, caption in reversed(named.items())}
    for name, code in codes:
        caption = caption_of(sequence_of(code))
        if caption is not None:
            found.setdefault(letters_of(name), caption)
    for names in (
        lambda sequence: EMOJI_DATA[sequence].get("alias", []),
        lambda sequence: [unicodedata.name(sequence[0], "")] if sequence[1:] in ("", "\ufe0f") else [],
    ):
        for sequence, caption in named.items():
            for name in names(sequence):
                found.setdefault(letters_of(name), caption)
    return found


def caption_named(name: str, codes: Mapping[str, str]) -> str | None:
    """Caption of the emoji that a package calls `name`, or `None` if that is no name of an emoji.

    Args:
        name (`str`): E.g. `"woman-firefighter-medium-skin-tone"` or `"blackscissors"`.
        codes (`Mapping`): Code points of the names that packages use.
    """
    return _captions_by_letters(tuple(codes.items())).get(letters_of(name))


__all__ = ["SKIN_TONE", "caption_named", "caption_of", "letters_of", "sequence_of"]
