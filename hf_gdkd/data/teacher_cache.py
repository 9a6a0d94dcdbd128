"""A teacher's logits on disk, by row of the data set and number of the view, so that the teacher runs once.

A folder holds cache.json, which says what the logits are of, and two files for each view v:

- `view-000v.logits`: one record of fixed size for each row of the split, row 0 first (see `cache_records`).
- `view-000v.crc32`: one uint32 for each row: the CRC-32 of view, row (uint32 each) and record; 0: not recorded.

A record is written before its checksum, so whatever a killed process leaves is complete, or is computed again with its
row. Processes need no lock: they write different rows, or one row twice. All numbers are little-endian.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import InputError, first_sentence
from .cache_records import decode, encode, record_type

DESCRIPTION = "cache.json"
FORMAT = 1  # of the files


class TeacherCache:
    """Reads and records the logits of one teacher on the views of one split.

    Args:
        folder: where the files are; it is made with the first record.
        of: what the logits depend on (teacher, data set, transform, seed, ...), as JSON.
        rows: number of rows of the split.
        classes: number of classes C.
        views: number of views of each row; the view in epoch e is e modulo `views`.
        dtype: "float16", "float32", "int8", or "top-M", such as "top-10".

    Raises:
        InputError: an unknown dtype, or a folder that holds logits of something else: the difference is named.

    Example:
        >>> import tempfile, numpy as np
        >>> cache = TeacherCache(tempfile.mkdtemp(), {"teacher": "me/teacher"}, rows=5, classes=3, views=2)
        >>> cache.record([4], [1], np.array([[0.5, 2.0, -1.0]]))
        >>> logits, known = cache.read([3, 4], [1, 1])
        >>> known.tolist(), logits[1].tolist()
        ([False, True], [0.5, 2.0, -1.0])
    """

    def __init__(
        self, folder: str | Path, of: Mapping[str, Any], *, rows: int, classes: int, views: int, dtype: str = "float16"
    ) -> None:
        self.folder, self.rows, self.classes, self.views, self.dtype = Path(folder), rows, classes, views, dtype
        self.record_type = record_type(dtype, classes)
        size = {"format": FORMAT, "rows": rows, "classes": classes, "views": views, "dtype": dtype}
        self.description = json.loads(json.dumps(dict(of) | size))  # as it is read back
        self._maps: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._writers: dict[int, tuple[BinaryIO, BinaryIO]] = {}
        if (self.folder / DESCRIPTION).exists():
            _check_same(self.folder, read_description(self.folder), self.description)

    @classmethod
    def open(cls, folder: str | Path) -> TeacherCache:
        """The cache in a folder, whatever it is of.

        Raises:
            InputError: the folder holds no cache, or one of another format.
        """
        of = read_description(folder)
        return cls(folder, of, rows=of["rows"], classes=of["classes"], views=of["views"], dtype=of["dtype"])

    def __getstate__(self) -> dict[str, Any]:
        """Without the open files: each DataLoader worker opens its own."""
        return self.__dict__ | {"_maps": {}, "_writers": {}}

    def read(self, rows: Sequence[int], views: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Logits (N, C) in float32, and which of them are known (N): recorded, and intact."""
        records, known = np.zeros(len(rows), self.record_type), np.zeros(len(rows), bool)
        rows, views = np.asarray(rows, np.int64), np.asarray(views, np.int64)
        for view in set(views.tolist()):  # mostly one, that of the epoch
            if (maps := self._open(view)) is None:
                continue
            places = np.flatnonzero(views == view)
            stored, checksums = (each[rows[places]] for each in maps)
            data, size = memoryview(stored.tobytes()), stored.itemsize
            known[places] = [
                checksum and checksum == _checksum(view, row, data[i * size : (i + 1) * size])
                for i, (row, checksum) in enumerate(zip(rows[places].tolist(), checksums.tolist(), strict=True))
            ]
            records[places] = stored
        return decode(records, self.dtype, self.classes), known

    def record(self, rows: Sequence[int], views: Sequence[int], logits: np.ndarray) -> None:
        """Write logits (N, C) of rows (N) in views (N).

        Raises:
            OSError: they could not be written, such as on a full disk; what was recorded before is still valid.
        """
        for row, view, entry in zip(rows, views, encode(logits, self.dtype), strict=True):
            if view not in self._writers:
                self._writers[view] = self._create(view)
            records, sums = self._writers[view]
            data = entry.tobytes()
            _write_at(records, data, len(data) * row)
            _write_at(sums, struct.pack("<I", _checksum(view, row, data)), 4 * row)

    def recorded(self, view: int) -> np.ndarray:
        """Which rows of a view are recorded, (rows) bool; a damaged record is found when it is read."""
        maps = self._open(view)
        return np.zeros(self.rows, bool) if maps is None else maps[1] != 0

    def is_full(self, rows: Sequence[int]) -> bool:
        """Whether these rows are recorded in every view."""
        return all(self.recorded(view)[np.asarray(rows)].all() for view in range(self.views))

    def size(self, rows: int) -> int:
        """Bytes that so many rows take on the disk, in all views."""
        return rows * self.views * (self.record_type.itemsize + 4)

    def _create(self, view: int) -> tuple[BinaryIO, BinaryIO]:
        """The files of a view, open for writing; made, at their full size, where they are not there."""
        if not (self.folder / DESCRIPTION).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            part = self.folder / f"{DESCRIPTION}.{os.getpid()}"
            part.write_text(json.dumps(self.description, indent=2) + "\n", encoding="utf-8")
            part.replace(self.folder / DESCRIPTION)
        files = []
        for path, dtype in self._paths(view).items():
            path.touch()
            files.append(path.open("r+b", buffering=0))
            files[-1].truncate(dtype.itemsize * self.rows)  # takes no room on the disk before it is written
        return tuple(files)

    def _open(self, view: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Records and checksums of a view as maps of its files; None where these are not there yet."""
        if view not in self._maps:
            paths = self._paths(view)
            sizes = [path.stat().st_size // dtype.itemsize for path, dtype in paths.items() if path.is_file()]
            if sizes != [self.rows, self.rows]:  # or another process is just making them
                return None
            self._maps[view] = tuple(np.memmap(path, dtype, "r") for path, dtype in paths.items())
        return self._maps[view]

    def _paths(self, view: int) -> dict[Path, np.dtype]:
        name = self.folder / f"view-{view:04}"
        return {name.with_suffix(".logits"): self.record_type, name.with_suffix(".crc32"): np.dtype("<u4")}


def read_description(folder: str | Path) -> dict[str, Any]:
    """What a cache is of: the contents of its cache.json.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    try:
        description = json.loads(Path(folder, DESCRIPTION).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"folder {folder} is not a teacher cache: it has no {DESCRIPTION}.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"the teacher cache {folder} cannot be read: {first_sentence(error)}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise InputError(f"the teacher cache {folder} has another format than {FORMAT}: record it again elsewhere.")
    return description


def _check_same(folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], path: str = "") -> None:
    by_contents = not any(each.get("commit") or each.get("revision") for each in (stored, wanted))
    for key in dict.fromkeys((*stored, *wanted)):
        if key == "name" and by_contents:  # of a local folder, wherever it is now: its contents are compared
            continue
        there, here = stored.get(key), wanted.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            _check_same(folder, there, here, f"{path}{key}.")
        elif there != here:
            raise InputError(
                f"the teacher cache {folder} was recorded with {path}{key} {json.dumps(there)}, and this run has "
                f"{json.dumps(here)}: use another --teacher_cache folder, or the same {key}."
            )


def _checksum(view: int, row: int, data: bytes | memoryview) -> int:
    return zlib.crc32(data, zlib.crc32(struct.pack("<II", view, row))) or 1


def _write_at(file: BinaryIO, data: bytes, offset: int) -> None:
    """Write to a file. Not through a map: where the disk is full, that would end the process."""
    while data:
        written = os.pwrite(file.fileno(), data, offset)
        data, offset = data[written:], offset + written


def logits_key(pixels: str) -> str:
    """The key in a batch of the logits of the teacher whose view has the key `pixels`."""
    return pixels.replace("pixel_values", "logits")
