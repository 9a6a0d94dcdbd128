"""A teacher cache: what is read is what was recorded, or known to be missing; whatever kills or damages it."""

import errno
import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from hf_gdkd.data.cache_records import decode, encode
from hf_gdkd.data.teacher_cache import TeacherCache, read_description
from hf_gdkd.errors import InputError

ROWS, CLASSES, VIEWS = 40, 12, 3
OF = {"teacher": {"name": "me/teacher", "commit": "abc"}, "seed": 1}


def cache(folder, **changes):
    return TeacherCache(folder, **{"of": OF, "rows": ROWS, "classes": CLASSES, "views": VIEWS, **changes})


def logits(n, seed=0):
    return (3 * np.random.default_rng(seed).standard_normal((n, CLASSES))).astype(np.float32)


def test_float32_is_exact_and_float16_rounds():
    x = logits(50)
    assert (decode(encode(x, "float32"), "float32", CLASSES) == x).all()
    assert (decode(encode(x, "float16"), "float16", CLASSES) == x.astype(np.float16)).all()


def test_int8_is_off_by_half_a_step_at_most():
    x = logits(50)
    x[3, 4], x[5] = -np.inf, 2.5  # a masked class, and a row without a range
    y = decode(encode(x, "int8"), "int8", CLASSES)
    span = np.where(np.isfinite(x), x, np.nan)
    step = (np.nanmax(span, 1) - np.nanmin(span, 1)) / 254
    finite = np.isfinite(x)
    assert (np.isneginf(y) == ~finite).all()
    assert (np.abs(x - y)[finite] <= np.broadcast_to(0.5001 * step[:, None] + 1e-6, x.shape)[finite]).all()


def test_the_largest_and_the_rest_s_mass_are_kept():
    x = logits(50)
    y = decode(encode(x, "top-4"), "top-4", CLASSES)
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (x, y))
    best = np.argsort(-x, 1)[:, :4]
    np.testing.assert_allclose(np.take_along_axis(q, best, 1), np.take_along_axis(p, best, 1), rtol=5e-3)
    np.testing.assert_allclose(np.exp(y).sum(1), 1, rtol=5e-3)
    rest = np.sort(q, 1)[:, :1]
    np.testing.assert_allclose(rest[:, 0] * (CLASSES - 4), 1 - np.take_along_axis(p, best, 1).sum(1), rtol=2e-2)


@pytest.mark.parametrize("dtype", ["float15", "top-0", "top-12", "top-x", ""])
def test_unknown_dtypes(tmp_path, dtype):
    with pytest.raises(InputError, match="the teacher cache"):
        cache(tmp_path, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8", "top-5"])
def test_what_is_read_is_what_was_recorded(tmp_path, dtype):
    x, rows, views = logits(6), [0, 5, 5, 39, 7, 1], [0, 0, 2, 1, 1, 1]
    cache(tmp_path / "new" / "folder", dtype=dtype).record(rows, views, x)
    again = cache(tmp_path / "new" / "folder", dtype=dtype)
    read, known = again.read([*rows, 5], [*views, 1])
    assert known.tolist() == [True] * 6 + [False]
    assert (read[:6] == decode(encode(x, dtype), dtype, CLASSES)).all()
    assert again.recorded(1).nonzero()[0].tolist() == [1, 7, 39]


def test_files_are_plain_arrays(tmp_path):
    """As the documentation describes them: a user reads them with numpy alone."""
    x = logits(ROWS)
    cache(tmp_path).record(range(ROWS), [2] * ROWS, x)
    assert (np.fromfile(tmp_path / "view-0002.logits", "<f2").reshape(ROWS, CLASSES) == x.astype(np.float16)).all()
    assert json.loads((tmp_path / "cache.json").read_text())["teacher"] == OF["teacher"]


def test_full_once_all_rows_are_there_in_all_views(tmp_path):
    one = cache(tmp_path)
    for view in range(VIEWS):
        assert not one.is_full(range(ROWS))
        one.record(range(ROWS), [view] * ROWS, logits(ROWS))
    assert one.is_full(range(ROWS)) and cache(tmp_path).is_full([3, 4])


@pytest.mark.parametrize("name", ["view-0000.logits", "view-0000.crc32"])
def test_a_damaged_record_alone_is_missing(tmp_path, name):
    cache(tmp_path).record(range(ROWS), [0] * ROWS, logits(ROWS))
    path = tmp_path / name
    size = path.stat().st_size // ROWS
    data = bytearray(path.read_bytes())
    data[size * 7 + size - 1] ^= 1
    path.write_bytes(data)
    _, known = cache(tmp_path).read(range(ROWS), [0] * ROWS)
    assert (~known).nonzero()[0].tolist() == [7]
    one = cache(tmp_path)
    one.record([7], [0], logits(1))
    assert one.read(range(ROWS), [0] * ROWS)[1].all()


def test_records_in_another_s_place_are_missing(tmp_path):
    """Equal logits of two rows, or of two views, do not stand for each other."""
    one = cache(tmp_path)
    one.record([0, 1], [0, 0], logits(2))
    for suffix in ("logits", "crc32"):
        path = tmp_path / f"view-0000.{suffix}"
        (tmp_path / f"view-0001.{suffix}").write_bytes(path.read_bytes())
    assert not cache(tmp_path).read([0, 1], [1, 1])[1].any()


def test_a_cut_file_is_no_end(tmp_path):
    """A file that was copied in part: its view is recorded again."""
    cache(tmp_path).record(range(ROWS), [0] * ROWS, logits(ROWS))
    os.truncate(tmp_path / "view-0000.logits", 100)
    one = cache(tmp_path)
    assert not one.read([0], [0])[1].any()
    one.record([0, 30], [0, 0], logits(2))
    assert one.read([0, 30, 29], [0, 0, 0])[1].tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"of": OF | {"teacher": {"name": "me/teacher", "commit": "def"}}}, 'teacher.commit "abc"'),
        ({"of": OF | {"seed": 2}}, "seed 1, and this run has 2"),
        ({"of": OF | {"flip": True}}, "flip null"),
        ({"rows": 41}, "rows 40"),
        ({"views": 4}, "views 3"),
        ({"dtype": "int8"}, 'dtype "float16"'),
    ],
)
def test_a_cache_of_something_else_is_refused(tmp_path, changes, named):
    cache(tmp_path).record([0], [0], logits(1))
    with pytest.raises(InputError, match="was recorded with") as error:
        cache(tmp_path, **changes)
    assert named in str(error.value)


def test_folders_that_are_no_cache(tmp_path):
    with pytest.raises(InputError, match=r"is not a teacher cache: it has no cache\.json"):
        read_description(tmp_path)
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        cache(tmp_path)
    (tmp_path / "cache.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match="another format"):
        TeacherCache.open(tmp_path)


def test_a_full_disk_leaves_what_was_recorded(tmp_path, monkeypatch):
    one = cache(tmp_path)
    one.record([0, 1], [0, 0], logits(2))
    write, left = os.pwrite, [2]

    def full(file, data, offset):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[:3], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        one.record([2], [0], logits(1))
    assert cache(tmp_path).read([0, 1, 2], [0, 0, 0])[1].tolist() == [True, True, False]


def records_for_ever(folder, seed):
    one, generator = cache(folder), np.random.default_rng(seed)
    while True:
        rows = generator.integers(0, ROWS, 8)
        one.record(rows, rows % VIEWS, np.repeat(rows[:, None], CLASSES, 1).astype(np.float32))


def test_processes_that_write_together_and_are_killed_leave_it_valid(tmp_path):
    """What is known afterwards is right: the logits of row i are i here."""
    context = multiprocessing.get_context("fork")
    for attempt in range(3):
        processes = [context.Process(target=records_for_ever, args=(tmp_path, 2 * attempt + i)) for i in range(2)]
        for process in processes:
            process.start()
        time.sleep(0.05 * (attempt + 1))
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        read, known = cache(tmp_path).read(range(ROWS), [row % VIEWS for row in range(ROWS)])
        assert (read[known] == np.arange(ROWS)[known, None]).all()
    assert known.any()
