"""Match the teacher's classes with the data set's by name.

Two classes match when both are the same WordNet synset; otherwise when their full names are equal; otherwise when
their main names (before the first comma) are; otherwise when the name of one is a synonym of the other. Case,
underscores, hyphens and apostrophes do not matter, unless they distinguish two classes. At every step only names
that are unique on both sides count: nothing is guessed.
"""

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from ..errors import InputError

_SYNSET = re.compile(r"(n\d{8})(?:$|[\s_,:-])")  # "n01440764", and "n02085620-Chihuahua"
_NUMBERED = re.compile(r"(?:label_)?(\d{1,9})", re.IGNORECASE)  # "LABEL_3", "3"
_SUBSETS = {1000: "imagenet-1k", 11221: "imagenet-21k-miil", 11821: "imagenet-12k"}
_SUBSETS |= {21841: "imagenet-22k", 21842: "imagenet-22k-ms", 21843: "imagenet-21k"}
_IN_ORDER = 0.99  # share of the names that must be at their ImageNet index before an index decides


def match_labels(
    source: Sequence[str],
    target: Sequence[str],
    label_map: Mapping[str, str] | None = None,
    *,
    source_name: str = "teacher",
    target_name: str = "data set",
) -> list[int]:
    """Find the source class of each target class: with the returned index, `teacher_logits[:, index]` fit the target.

    Args:
        source: the teacher's class names, in the order of its logits.
        target: the data set's class names, in the order of its labels.
        label_map: {target class: source class}, which overrides the names. Either may be written as its
            index, which distinguishes two classes of one name. Target classes may share a source class here.
        source_name, target_name: the ids of teacher and data set, for the error messages.

    Returns:
        One source index for each target class. Where both sides have the same numbers in place of names (LABEL_0, 0),
        these decide. Numbers are names where the other side has all of them among other names.

    Raises:
        InputError: a target class has no source class, several, or one that another class needs too; one side has
            names and the other only numbers; the numbers differ; label_map contains an unknown name.

    Examples:
        >>> from hf_gdkd.models import match_labels
        >>> match_labels(["tabby, tabby cat", "Chihuahua", "tench"], ["tench", "Tabby_cat"])
        [2, 0]
    """
    teacher = "the teacher" if source_name == "teacher" else source_name  # in an evaluation, of any model
    data = "the data set" if target_name == "data set" else f"the data set {target_name}"
    mapped = {}
    for key, value in (label_map or {}).items():
        i = _find(key, target, f"its keys must be classes of {data}")
        mapped[i] = _find(value, source, f"its values must be classes of {teacher}")
    matched = _match(source, target) | mapped
    missing = [i for i in range(len(target)) if i not in matched]
    if not missing:
        return [matched[i] for i in range(len(target))]
    numbered = _numbers(source, target), _numbers(target, source)
    if all(numbered):
        what = f"neither {teacher} nor {data} names its classes, and their numbers differ: "
        what += f"{_few(source)} ({len(source)} classes) and {_few(target)} ({len(target)})"
    elif any(numbered):
        side, names = (teacher, source) if numbered[0] else (data, target)
        what = f"the names of the classes of {side} are unknown: it only numbers them ({_few(names)})"
    else:
        what = f"{len(missing)} of the {len(target)} classes of {data} match no single class of {teacher}: "
        what += ", ".join(_explain(i, source, target) for i in missing[:5]) + (", ..." if missing[5:] else "")
    student = "<teacher>" if source_name == "teacher" else shlex.quote(source_name)
    dataset = "<data set>" if target_name == "data set" else shlex.quote(target_name)
    raise InputError(
        f"{what}; list the pairs in a file and use --label_map (YAML or JSON: {{data set class: teacher class}}), "
        "or fine-tune that model on the data set "
        f"(hf-gdkd distill --loss ce --student {student} --dataset {dataset}), "
        "or distil without labels, in the teacher's own classes (--label_free)"
    )


def matching_rows(source: Sequence[str], target: Sequence[str]) -> dict[int, int]:
    """{target index: source index} of the classes that match as in `match_labels`; the others are left out.

    For a pretrained head (source) whose rows are kept where the new classes (target) are among the old ones.
    """
    return _match(source, target)


def _find(name: str, names: Sequence[str], rule: str) -> int:
    """The index of the class that `label_map` calls `name`: a name first, then an index."""
    name = str(name)
    hits = [i for i, other in enumerate(names) if other == name]
    hits = hits or [i for i, other in enumerate(names) if _normalise(other) == _normalise(name)]
    if not hits and re.fullmatch(r"\d{1,9}", name) and int(name) < len(names):
        hits = [int(name)]
    if not hits:
        allowed = f"by name or as an index below {len(names)}: {_few(names)}"
        raise InputError(f"the label map has {name!r}, but {rule}, {allowed}")
    if len(hits) > 1:
        raise InputError(f"the label map has {name!r}, but classes {_few(hits)} have that name: write the index")
    return hits[0]


def _match(source: Sequence[str], target: Sequence[str]) -> dict[int, int]:
    """{target index: source index} wherever numbers, synsets or names decide."""
    if list(source) == list(target):
        return {i: i for i in range(len(target))}
    s_numbers, t_numbers = _numbers(source, target), _numbers(target, source)
    if s_numbers and t_numbers and s_numbers.keys() == t_numbers.keys() and len(source) == len(target):
        return {i: s_numbers[number] for number, i in t_numbers.items()}
    if s_numbers or t_numbers:
        return {}
    (s_names, s_ids), (t_names, t_ids) = _sides(source, target)
    pairs: dict[int, int] = {}
    s_seen: set[int] = set()
    t_seen: set[int] = set()
    for step in range(5):
        s_owner = _owners(s_names, s_ids, step, "source")
        hits: dict[int, dict[Any, int]] = {}
        for key, i in _owners(t_names, t_ids, step, "target").items():
            j = s_owner.get(key)
            if j is None or i in t_seen:
                continue
            if step == 0 or (not (t_ids[i] and s_ids[j]) and _compatible(t_names[i], s_names[j])):
                hits.setdefault(i, {})[key] = j  # two known synsets match in step 0 or not at all
        claims = Counter(j for found in hits.values() for j in set(found.values()))
        if step == 2:  # a main name contests a whole name here, but does not decide before step 3
            hits = {i: found for i, found in hits.items() if any(kind == "whole" for kind, _ in found)}
        for i, found in hits.items():
            j = next(iter(found.values()))
            if set(found.values()) == {j} and claims[j] == 1 and j not in s_seen:
                pairs[i] = j
        t_seen |= hits.keys()  # what is contested here is not left to the weaker evidence of a later step
        s_seen |= {j for found in hits.values() for j in found.values()}
    return {i: j for i, j in pairs.items() if i < len(target) and j < len(source)}


def _owners(names: Sequence[str], ids: Sequence[str | None], step: int, side: str) -> dict[Any, int]:
    """{key: index} of one step, only for the keys that one class alone has."""
    other = "target" if side == "source" else "source"
    owners: dict[Any, set[int]] = {}
    for i, name in enumerate(names):
        main = name.split(",")[0].strip()
        keys: set[Any] = set()
        if step == 0 and ids[i]:
            keys = {ids[i]}
        elif step == 1:
            keys = {name.strip()}
        elif step == 2:  # "Cardigan" is a corgi's main name and, but for the case, the knitwear's whole name
            keys = {("main", main), ("whole", _normalise(name))}
        elif step == 3:  # "gong" is "gong, tam-tam" before it is "chime, bell, gong"
            keys = {("main", main), ("any case", _normalise(main)), (side, _normalise(name))}
            keys |= {(other, synonym) for synonym in _synonyms(name)}  # one's whole name is the other's synonym
        elif step == 4:
            keys = set(_synonyms(name))
        for key in keys:
            owners.setdefault(key, set()).add(i)
    return {key: found.pop() for key, found in owners.items() if len(found) == 1}


def _sides(*sides: Sequence[str]) -> list[tuple[list[str], list[str | None]]]:
    """For each side its names (a description for each synset id) and its synsets (None where unknown).

    A side that writes synsets is followed by the ImageNet-1k classes it lacks, so that a name that also means
    one of these ("crane": bird or machine) is not unique.
    """
    if not any(len(names) >= 1000 or any(map(_SYNSET.match, names)) for names in sides):
        return [(list(names), [None] * len(names)) for names in sides]
    thousand = _imagenet("imagenet-1k")
    known = {text: synset for synset, text in thousand.items() if "," in text}
    result = []
    for names in sides:
        written = [found[1] if (found := _SYNSET.match(name)) else None for name in names]
        ordered = _in_order(names)
        ids = [w or ordered.get(i) or known.get(names[i]) for i, w in enumerate(written)]
        texts = [_lemmas(w) or name if w else name for w, name in zip(written, names, strict=True)]
        have = set(ids)
        lacking = [synset for synset in thousand if synset not in have] if any(written) else []
        result.append((texts + [thousand[synset] for synset in lacking], ids + lacking))
    return result


def _in_order(names: Sequence[str]) -> dict[int, str]:
    """{index: synset} if the names are an ImageNet subset's in its order, after "background" or not."""
    for count, subset in _SUBSETS.items():
        skip = len(names) - count
        if skip in (0, 1):
            places = enumerate(_imagenet(subset).items(), start=skip)
            found = {i: synset for i, (synset, text) in places if _synonyms(names[i]) & _synonyms(text)}
            if len(found) >= _IN_ORDER * count:
                return found
    return {}


@cache
def _imagenet(subset: str) -> dict[str, str]:
    """{synset: "main name, synonym, ..."} in the subset's order."""
    from timm.data import ImageNetInfo  # imports torchvision

    return ImageNetInfo(subset).label_descriptions(as_dict=True)


def _lemmas(synset: str) -> str | None:
    return _imagenet("imagenet-1k").get(synset) or _imagenet("imagenet-21k").get(synset)


def _numbers(names: Sequence[str], others: Sequence[str]) -> dict[int, int] | None:
    """{number: index} if the classes are only numbered (LABEL_0 or 0), else None.

    Numbers are names where the other side has all of them beside names that are none, such as 0-9 among 0-9, A-Z.
    """
    found = [_NUMBERED.fullmatch(name) for name in names]
    if not names or not all(found) or (set(names) <= set(others) and not all(map(_NUMBERED.fullmatch, others))):
        return None
    return {int(match[1]): i for i, match in enumerate(found)}


@cache
def _normalise(name: str) -> str:
    """Without case, apostrophes, and the difference between spaces, underscores, hyphens and commas."""
    return re.sub(r"[\s_,-]+", " ", re.sub("['’]", "", name.casefold())).strip()


@cache
def _synonyms(name: str) -> frozenset[str]:
    return frozenset(_normalise(part) for part in name.split(",")) - {""}


def _compatible(a: str, b: str) -> bool:
    """Two lists of synonyms must hold each other's main name: "French horn, horn" is no "cornet, horn"."""
    mains = [_normalise(name.split(",")[0]) for name in (a, b)]
    return "," not in a or "," not in b or (mains[0] in _synonyms(b) and mains[1] in _synonyms(a))


def _explain(i: int, source: Sequence[str], target: Sequence[str]) -> str:
    """The name of an unmatched target class, and why: what it could be, or which class wants the same."""
    (s_names, s_ids), (t_names, t_ids) = _sides(source, target)

    def fits(i: int, j: int) -> bool:
        if t_ids[i] and s_ids[j]:
            return t_ids[i] == s_ids[j]
        return not _synonyms(t_names[i]).isdisjoint(_synonyms(s_names[j]))

    def call(texts: Sequence[str], names: Sequence[str], j: int) -> str:
        return f"{names[j]!r} [{j}]" if j < len(names) else f"ImageNet's {texts[j]!r}"

    choices = [j for j in range(len(s_names)) if fits(i, j)]
    if not choices:
        return repr(target[i])
    few = " or ".join(call(s_names, source, j) for j in choices[:3])
    rivals = [k for k in range(len(t_names)) if k != i and fits(k, choices[0])]
    if len(choices) > 1 or not rivals:
        return f"{call(t_names, target, i)} (could be {few})"
    return f"{call(t_names, target, i)} ({few} also fits {call(t_names, target, rivals[0])})"


def _few(names: Sequence[Any]) -> str:
    return ", ".join(repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
