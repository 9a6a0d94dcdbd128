"""A label map: the file with which a user says which teacher class is which class of the data set."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError


def load_label_map(path: str | Path) -> dict[str, str]:
    """{data set class: teacher class} from a YAML or JSON file; every scalar is read as text ("no", 007, 3).

    Raises:
        InputError: no such file, neither YAML nor JSON, not a mapping of names to names, a class that appears twice.
    """
    wanted = "write {data set class: teacher class}, one name or index each, as YAML or JSON"
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        pairs = _json_pairs(text) if Path(path).suffix.lower() == ".json" else _yaml_pairs(text)
    except OSError as error:
        raise InputError(f"the label map {path} cannot be read ({error.strerror}): {wanted}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the label map {path} is neither YAML nor JSON ({reason}): {wanted}") from error
    if pairs is None:
        raise InputError(f"the label map {path} is not a mapping: {wanted}")
    names: dict[str, str] = {}
    for key, value in pairs:
        if not (isinstance(key, str) and isinstance(value, str) and key and value):
            raise InputError(f"the label map {path} has no single name for {key!r}: {wanted}")
        if key in names:
            raise InputError(f"the label map {path} has {key!r} twice: keep one of the lines")
        names[key] = value
    return names


def _json_pairs(text: str) -> Iterable[tuple[Any, Any]] | None:
    data = json.loads(text, object_pairs_hook=tuple, parse_int=str)  # a tuple is an object, a list an array
    return data if isinstance(data, tuple) else None


def _yaml_pairs(text: str) -> Iterable[tuple[Any, Any]] | None:
    node = yaml.compose(text, Loader=yaml.SafeLoader)  # nodes hold the text as it stands; no object is built
    if not isinstance(node, yaml.MappingNode):
        return None
    return [tuple(n.value if isinstance(n, yaml.ScalarNode) else None for n in pair) for pair in node.value]
