"""Options as words, such as `gdkd.temperature=4` of a loss, which a flag and a settings file can hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError


def as_dict(
    options: Mapping[str, Any] | Sequence[str] | None, what: str = "loss_options", example: str = "gdkd.temperature=4"
) -> dict[str, Any]:
    """Options by name; a value is read as JSON (4, true, [2, 4]) where it is that, and is a word otherwise.

    Args:
        options: words, or a mapping.
        what, example: for the error message.

    Raises:
        InputError: a word without a name or a value.
    """
    if isinstance(options, Mapping):
        return dict(options)
    found = {}
    for word in [options] if isinstance(options, str) else options or ():
        name, _, value = str(word).partition("=")
        if not (name and value):
            raise InputError(f"{what} has {str(word)!r}: write options as {example}.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def as_words(options: Mapping[str, Any]) -> list[str]:
    """What `as_dict` reads; options that are None are left out."""
    return [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in options.items()
        if value is not None
    ]


def automatic_k(options: Mapping[str, Any]) -> list[str]:
    """The names of options that are a k, of all losses or of one, that is found before training.

    Examples:
        >>> automatic_k({"gdkd.k": "auto", "k": 3, "gdkd.weight": "auto"})
        ['gdkd.k']
    """
    return [name for name, value in options.items() if name.rpartition(".")[2] == "k" and value == "auto"]
