"""How a teacher cache stores the logits of one image: as float16, float32, int8, or the M most probable classes.

- float16, float32: the logits of all classes.
- int8: `scale` and `offset` (float32 each), then a byte q for each class: its logit is offset + scale * q; q = -128
  stands for minus infinity. The error is at most 1/508 of the range of the finite logits.
- top-M: `rest`, the logarithm of the probability of all other classes together (float32), the M most probable
  `classes` (uint32), and their `log_probs` (float16). The other classes share `rest` equally when they are read.
"""

from __future__ import annotations

import re

import numpy as np

from ..errors import InputError

DTYPES = "float16, float32, int8 or top-M, such as top-10"


def record_type(dtype: str, classes: int) -> np.dtype:
    """The numpy type of one image's record.

    Raises:
        InputError: an unknown dtype, or an M that is not from 1 to C-1.
    """
    if dtype in ("float16", "float32"):
        return np.dtype([("logits", f"<f{int(dtype[5:]) // 8}", (classes,))])
    if dtype == "int8":
        return np.dtype([("scale", "<f4"), ("offset", "<f4"), ("logits", "i1", (classes,))])
    if top := kept_classes(dtype):
        if not 1 <= top < classes:
            raise InputError(f"the teacher cache is to keep {dtype} of {classes} classes: use 1 to {classes - 1}.")
        return np.dtype([("rest", "<f4"), ("classes", "<u4", (top,)), ("log_probs", "<f2", (top,))])
    raise InputError(f"the dtype of the teacher cache is {dtype!r}: choose {DTYPES}.")


def kept_classes(dtype: str) -> int | None:
    """M of "top-M"; None where all classes are kept."""
    found = re.fullmatch(r"top-(\d{1,9})", dtype)
    return int(found[1]) if found else None


def encode(logits: np.ndarray, dtype: str) -> np.ndarray:
    """Logits (N, C) as records (N). Logits beyond the range of float16 are stored as its largest number."""
    logits = np.asarray(logits, np.float32)
    records = np.zeros(len(logits), record_type(dtype, logits.shape[1]))
    if dtype == "int8":
        finite = np.isfinite(logits)
        low = np.where(finite, logits, np.inf).min(1, keepdims=True)
        high = np.where(finite, logits, -np.inf).max(1, keepdims=True)
        scale = np.where(high > low, (high - low) / 254, 1).astype(np.float32)
        offset = ((high + low) / 2).astype(np.float32)
        with np.errstate(invalid="ignore"):
            steps = np.rint((logits - offset) / scale)
        records["logits"] = np.where(finite, np.clip(np.where(finite, steps, 0), -127, 127), -128)
        records["scale"], records["offset"] = scale[:, 0], offset[:, 0]
    elif top := kept_classes(dtype):
        wide = logits.astype(np.float64)
        log_probs = wide - _logsumexp(wide)
        classes = np.argpartition(-log_probs, top, axis=1)[:, :top]
        records["classes"], records["log_probs"] = classes, np.take_along_axis(log_probs, classes, 1)
        np.put_along_axis(log_probs, classes, -np.inf, 1)
        records["rest"] = _logsumexp(log_probs)[:, 0]
    else:
        largest = np.finfo(records.dtype["logits"].base).max
        records["logits"] = np.where(np.isinf(logits), logits, np.clip(logits, -largest, largest))
    return records


def decode(records: np.ndarray, dtype: str, classes: int) -> np.ndarray:
    """Records (N) as logits (N, C) in float32; for top-M these are log-probabilities."""
    if dtype == "int8":
        logits = records["offset"][:, None] + records["scale"][:, None] * records["logits"].astype(np.float32)
        return np.where(records["logits"] == -128, -np.float32(np.inf), logits)
    if top := kept_classes(dtype):
        share = records["rest"] - np.log(np.float32(classes - top))
        logits = np.repeat(share[:, None], classes, 1)
        np.put_along_axis(logits, records["classes"].astype(np.int64), records["log_probs"].astype(np.float32), 1)
        return logits
    return records["logits"].astype(np.float32)


def _logsumexp(values: np.ndarray) -> np.ndarray:
    largest = values.max(1, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, 0)
    with np.errstate(divide="ignore"):
        return largest + np.log(np.exp(values - largest).sum(1, keepdims=True))
