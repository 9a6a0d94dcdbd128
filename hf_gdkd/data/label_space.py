"""What the values of a data set's masks mean: their classes by name, found in what is written, checked on the masks."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import InputError
from ..models.class_matching import matching_rows
from .known_palettes import (
    CITYSCAPES,
    CITYSCAPES_CLASSES,
    CITYSCAPES_COLOURS,
    CITYSCAPES_PALETTE,
    VOC_BORDER,
    VOC_CLASSES,
    VOC_COLOURS,
)
from .masks import IGNORE, MaskReader, as_number, shown, unknown

logger = logging.getLogger(__name__)

Colour = tuple[int, int, int]
Place = tuple[int, str]  # a row, and what it is called: "data set x, split train: mask in row 3"

NO_CLASS = {"background", "unlabeled", "unlabelled", "unknown", "void", "ignore", "other", "others", "none", "no label"}
MOST_CLASSES = IGNORE  # a mask has no more ids than these, 0 to 254


@dataclass
class ModelClasses:
    """What a model that segments says of its classes: their names, and whether its image processor reduces labels."""

    names: Sequence[str]
    reduce_labels: bool = False


@dataclass
class Stored:
    """The values of many masks, each with the mask that first has it; `colours_of` is what a palette says of an id."""

    ids: dict[int, Place] = field(default_factory=dict)
    colours: dict[int, Place] = field(default_factory=dict)
    colours_of: dict[int, set[int]] = field(default_factory=dict)

    @property
    def in_colour(self) -> bool:
        """Whether the ids are no ids: there are colours, or a palette that is not the same in all masks."""
        return bool(self.colours) or any(len(each) > 1 for each in self.colours_of.values())

    def add(self, other: Stored) -> None:
        for values, some in ((self.ids, other.ids), (self.colours, other.colours)):
            for value, place in some.items():
                values[value] = min(place, values.get(value, place))
        for value, colours in other.colours_of.items():
            self.colours_of.setdefault(value, set()).update(colours)

    def all_colours(self) -> dict[int, Place]:
        """The colours, with those of the palette and of grey ids."""
        found = dict(self.colours)
        for value, place in self.ids.items():
            for colour in self.colours_of.get(value, {value * 0x010101}):
                found[colour] = min(place, found.get(colour, place))
        return found


@dataclass
class LabelSpace:
    """Names of the classes, how masks are read as them, their colours if they have some, and what was found out."""

    names: list[str]
    reader: MaskReader
    reduce_labels: bool = False
    colours: list[Colour] | None = None
    notes: list[str] = field(default_factory=list)


def find_label_space(
    name: str,
    splits: Mapping[str, Stored],
    id2label: Mapping[int, str] | None = None,
    palette: Mapping[str, Colour] | None = None,
    models: Sequence[ModelClasses] = (),
    reduce_labels: bool | None = None,
) -> LabelSpace:
    """Find what the values of masks mean, and check that every value has a meaning.

    Args:
        name: of the data set.
        splits: the values that the masks of each split hold.
        id2label: {id: class} as the data set says; None: it does not.
        palette: {class: colour} as the data set says; "ignore" is the colour of no class.
        models: teachers, then the student: those that have classes of their own already.
        reduce_labels: whether 0 means no class and the other ids are one too large; None: found out.

    Raises:
        InputError: classes without names; a value without a class; ids where only 0 and 255 occur; a split without a
            pixel that has a class.
    """
    stored = Stored()
    for each in splits.values():
        stored.add(each)
    greys = palette is not None and all(len({*colour}) == 1 for colour in palette.values())
    if stored.in_colour or (greys and not stored.colours_of):
        space = _of_colours(name, stored, id2label, palette)
    else:
        space = _of_ids(name, stored, id2label, models, reduce_labels)
        space.colours = space.colours or _colours(space, stored, palette)
    if len(space.names) > MOST_CLASSES:
        raise InputError(
            f"data set {name} has {len(space.names)} classes, expected at most {MOST_CLASSES}: 255 means no class."
        )
    reader = space.reader
    for split, each in splits.items():
        values = each.all_colours() if reader.in_colour else each.ids
        if outside := {value: place for value, place in values.items() if value not in reader.table}:
            row, what = min(outside.values())
            first = [value for value, place in outside.items() if place == (row, what)]
            raise InputError(unknown(first, reader.table, what, in_colour=reader.in_colour))
        if all(reader.table[value] == IGNORE for value in values):
            raise InputError(
                f"data set {name}, split {split}, has no pixel with a class: all its masks hold "
                f"{_few_colours(values) if reader.in_colour else _few(values)} alone, which mean none; use a split or "
                "a column of masks that are labelled."
            )
    for note in space.notes:
        logger.warning(note)
    return space


# -- ids -------------------------------------------------------------------------------------------------------


def _of_ids(
    name: str,
    stored: Stored,
    id2label: Mapping[int, str] | None,
    models: Sequence[ModelClasses],
    reduce_labels: bool | None,
) -> LabelSpace:
    if _is_cityscapes(name, id2label, models) and not reduce_labels:
        return _cityscapes(name, stored, id2label)
    ids = {value for value in stored.ids if value != IGNORE}
    if id2label is not None:
        named = {i: each for i, each in sorted(id2label.items()) if 0 <= i != IGNORE}
    elif models:
        named = dict(enumerate(models[0].names))
    else:
        raise InputError(
            f"data set {name} does not name the classes of its masks (ids {_few(ids)}): write them to id2label.json, "
            "as {id: class}, beside the data or for --id2label, or use a teacher that knows them."
        )
    if ids == {0} and IGNORE in stored.ids and len(named) == 2:
        raise InputError(
            f"data set {name} has masks of 0 and 255 alone, and 255 means no class: name the black and the "
            "white in palette.json, as {class: [0, 0, 0], class: [255, 255, 255]}, beside the data or with --palette."
        )
    reduce, named = _reduced(ids if id2label is not None else set(), named, models, reduce_labels)
    names, notes = list(named.values()), []
    table = {i: k for k, i in enumerate(named)} | {IGNORE: IGNORE}
    if reduce:
        table = {0: IGNORE, IGNORE: IGNORE} | {i + 1: i for i in range(len(names))}
        notes.append(f"Masks of {name}: labels are reduced, once (0 means no class, 1 is {names[0]} and so on).")
    return LabelSpace(names, MaskReader(table), reduce, notes=notes)


def _reduced(
    ids: set[int], named: dict[int, str], models: Sequence[ModelClasses], asked: bool | None
) -> tuple[bool, dict[int, str]]:
    """Whether labels are reduced, and the names of the classes without that of 0, where it is among them.

    The ids decide where they are as many as the data set's own names, and 0; names that a model gave prove nothing.
    """
    names = list(named.values())
    whole = list(named) == list(range(len(names)))
    if not whole or asked is False:
        return False, named
    without_first = any(_same(model.names, names[1:]) and (model.reduce_labels or asked) for model in models)
    too_many = max(ids, default=0) == len(names)  # the names begin with the class of 1
    named_none = names[0].casefold() in NO_CLASS  # then a processor's word on these names is a leftover
    as_models = not named_none and any(model.reduce_labels and _same(model.names, names) for model in models)
    if without_first or (asked and named_none and not too_many):
        return True, dict(enumerate(names[1:]))
    return bool(asked or as_models or (too_many and 0 in ids)), named


def _same(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether names are those of the same classes, in any order."""
    return len(names) == len(others) == len(matching_rows(names, others))


def _is_cityscapes(name: str, id2label: Mapping[int, str] | None, models: Sequence[ModelClasses]) -> bool:
    if id2label is not None:
        raw = {i: each for each, i, _ in CITYSCAPES}
        trained = {i for i, each in raw.items() if each in CITYSCAPES_COLOURS}
        return trained <= id2label.keys() and all(id2label[i].casefold() == raw[i] for i in trained)
    return "cityscapes" in name.lower() or any(_same(model.names, CITYSCAPES_CLASSES) for model in models)


def _cityscapes(name: str, stored: Stored, id2label: Mapping[int, str] | None) -> LabelSpace:
    """Raw ids where a mask has one above 19 (traffic sign, sky, car), and where id2label names them."""
    colours = list(CITYSCAPES_COLOURS.values())
    if id2label is None and not any(len(CITYSCAPES_CLASSES) < value < IGNORE for value in stored.ids):
        table = {i: i for i in range(len(CITYSCAPES_CLASSES))} | {IGNORE: IGNORE}
        note = f"Masks of {name}: Cityscapes' 19 training ids, as they are."
        return LabelSpace(CITYSCAPES_CLASSES, MaskReader(table), colours=colours, notes=[note])
    index = {each: i for i, each in enumerate(CITYSCAPES_CLASSES)}
    table = {raw: index.get(each, IGNORE) for each, raw, _ in CITYSCAPES} | {IGNORE: IGNORE}
    pairs = ", ".join(f"{raw} -> {index[each]} {each}" for each, raw, _ in CITYSCAPES if each in index)
    note = f"Masks of {name}: Cityscapes' raw ids are mapped to its 19 training classes ({pairs}; all others -> 255)."
    return LabelSpace(CITYSCAPES_CLASSES, MaskReader(table), colours=colours, notes=[note])


def _colours(space: LabelSpace, stored: Stored, palette: Mapping[str, Colour] | None) -> list[Colour] | None:
    """A colour for every class: of the palette file, or of the palette in the masks."""
    if palette is not None and all(name in palette for name in space.names):
        return [palette[name] for name in space.names]
    ids = {k: value for value, k in space.reader.table.items() if k != IGNORE}
    found = {k: next(iter(stored.colours_of[value])) for k, value in ids.items() if value in stored.colours_of}
    return [_channels(found[k]) for k in ids] if len(found) == len(ids) else None


# -- colours ---------------------------------------------------------------------------------------------------


def _of_colours(
    name: str, stored: Stored, id2label: Mapping[int, str] | None, palette: Mapping[str, Colour] | None
) -> LabelSpace:
    notes, values, known = [], stored.all_colours(), None
    if palette is None:
        known, palette = _known_palette(values)
        if known is None:
            raise InputError(
                f"{min(values.values())[1]} has colours whose classes are unknown "
                f"({_few_colours(stored.colours or values)}): name every colour in palette.json, as "
                "{class: [red, green, blue]}, beside the data or with --palette; those called ignore have no class."
            )
        notes.append(f"Masks of {name}: colours of {'Pascal VOC' if 'sofa' in palette else 'Cityscapes'}, all known.")
    names = known or [each for each in palette if each != "ignore"]
    if id2label is not None:
        names = [each for i, each in sorted(id2label.items()) if 0 <= i != IGNORE]
    if missing := [each for each in names if each not in palette]:
        raise InputError(
            f"data set {name} has no colour for {len(missing)} of its classes, {', '.join(missing[:5])}: name the "
            "colour of every class in palette.json."
        )
    if ignored := [each for each in palette if each not in names and each != "ignore"]:
        notes.append(f"Masks of {name}: colours of {', '.join(ignored)} mean no class.")
    table = {as_number(colour): names.index(each) if each in names else IGNORE for each, colour in palette.items()}
    if len(table) < len(palette):
        raise InputError(f"the palette of data set {name} gives one colour to two classes: correct it.")
    return LabelSpace(names, MaskReader(table, in_colour=True), False, [palette[each] for each in names], notes)


def _known_palette(values: Collection[int]) -> tuple[list[str] | None, dict[str, Colour] | None]:
    """The classes and colours of Cityscapes or Pascal VOC, where three or more of these occur and no others."""
    voc = VOC_COLOURS | {"ignore": VOC_BORDER}
    for names, palette in ((CITYSCAPES_CLASSES, CITYSCAPES_PALETTE), (VOC_CLASSES, voc)):
        if {*values} <= {as_number(colour) for colour in palette.values()} and len(values) >= 3:
            return names, palette
    return None, None


def _channels(colour: int) -> Colour:
    return colour >> 16, colour >> 8 & 255, colour & 255


def _few(ids: Collection[int]) -> str:
    listed = sorted(ids)
    return ", ".join(map(str, listed[:10])) + (f", ... {listed[-1]}" if len(listed) > 10 else "")


def _few_colours(colours: Collection[int]) -> str:
    return ", ".join(map(shown, list(colours)[:5])) + (f" and {len(colours) - 5} more" if len(colours) > 5 else "")
