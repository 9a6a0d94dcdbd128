"""The ids and colours of Cityscapes and Pascal VOC, which data sets of these names use without saying so."""

from __future__ import annotations

# name, raw id, colour; the 19 classes that are trained on are those of CITYSCAPES_CLASSES, in the order of their ids.
# Source: labels.py of the data set's authors, github.com/mcordts/cityscapesScripts.
CITYSCAPES = (
    ("unlabeled", 0, (0, 0, 0)),
    ("ego vehicle", 1, (0, 0, 0)),
    ("rectification border", 2, (0, 0, 0)),
    ("out of roi", 3, (0, 0, 0)),
    ("static", 4, (0, 0, 0)),
    ("dynamic", 5, (111, 74, 0)),
    ("ground", 6, (81, 0, 81)),
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("parking", 9, (250, 170, 160)),
    ("rail track", 10, (230, 150, 140)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("guard rail", 14, (180, 165, 180)),
    ("bridge", 15, (150, 100, 100)),
    ("tunnel", 16, (150, 120, 90)),
    ("pole", 17, (153, 153, 153)),
    ("polegroup", 18, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("caravan", 29, (0, 0, 90)),
    ("trailer", 30, (0, 0, 110)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
    ("license plate", -1, (0, 0, 142)),
)
_UNTRAINED = {
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "parking"),
    *("rail track", "guard rail", "bridge", "tunnel", "polegroup", "caravan", "trailer", "license plate"),
}
CITYSCAPES_CLASSES = [name for name, _, _ in CITYSCAPES if name not in _UNTRAINED]
CITYSCAPES_COLOURS = {name: colour for name, _, colour in CITYSCAPES if name not in _UNTRAINED}
CITYSCAPES_PALETTE = CITYSCAPES_COLOURS | {  # one name a colour
    name: colour
    for colour, name in {colour: name for name, _, colour in reversed(CITYSCAPES)}.items()
    if colour not in CITYSCAPES_COLOURS.values()
}

VOC_CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()


def voc_colour(index: int) -> tuple[int, int, int]:
    """The colour of an index in Pascal VOC's palette: its bits, three at a time, from the highest of a channel on."""
    colour = [0, 0, 0]
    for shift in range(7, -1, -1):
        for channel in range(3):
            colour[channel] |= (index >> channel & 1) << shift
        index >>= 3
    return tuple(colour)


VOC_COLOURS = {name: voc_colour(i) for i, name in enumerate(VOC_CLASSES)}
VOC_BORDER = (224, 224, 192)
