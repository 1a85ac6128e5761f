"""Configurations of others, read key by key: each one is translated, changes nothing, or is refused.

A table gives every key its default in the original code and, behind it, the values that our models can do: all of the
default's type if there are none. A key without a default must be there.
"""

from numbers import Number
from typing import Any


UNREAD = [None]  # an option of training, or what the original code never reads: no value changes what comes out


def fixed(**defaults: Any) -> dict[str, list]:
    """Keys that are only known at their defaults."""
    return {name: [value, value] for name, value in defaults.items()}


def read_keys(place: str, given: Any, keys: dict[str, list]) -> dict[str, Any]:
    """What one object of a foreign configuration says, defaults included. Names with an underscore in front are notes.

    Args:
        place (`str`): Its name, with a dot; empty for the whole configuration.
        given, keys (`dict`): The object, and the table of all that it may have.

    Raises:
        KeyError: If a key is missing that has no default.
        ValueError: If there is another key, or one has a value that our models cannot do.
    """
    if not isinstance(given, dict):
        raise ValueError(f"`{place.strip('.')}` must be an object, got {given!r}.")
    found = {name: given[name] if name in given or not rule else rule[0] for name, rule in keys.items()}
    for name, value in {**found, **given}.items():
        default, *values = keys.get(name) or [None]
        kind = Number if isinstance(default, Number) else type(default)
        if name not in keys and not name.startswith("_"):
            raise ValueError(f"`{place}{name}` is {value!r}, expected no such key: what it changes is not known here.")
        if (values and value not in values) or not (values or default is None or isinstance(value, kind)):
            wanted = " or ".join(map(repr, values)) or f"something like {default!r}"
            raise ValueError(f"`{place}{name}` is {value!r}, expected {wanted}.")
    return found


__all__ = ["UNREAD", "fixed", "read_keys"]
