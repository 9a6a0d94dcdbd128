"""Options of losses as words, `gdkd.temperature=4`, which a flag and a settings file can hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError


def as_dict(options: Mapping[str, Any] | Sequence[str] | None) -> dict[str, Any]:
    """Options by name; a value is read as JSON (4, true, [2, 4]) where it is that, and is a word otherwise.

    Raises:
        InputError: a word without a name or a value.
    """
    if isinstance(options, Mapping):
        return dict(options)
    found = {}
    for word in [options] if isinstance(options, str) else options or ():
        name, _, value = str(word).partition("=")
        if not (name and value):
            raise InputError(f"loss_options has {str(word)!r}: write options as gdkd.temperature=4.")
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
