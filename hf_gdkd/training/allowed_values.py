"""Which numbers a configuration takes: one table, for the commands and for Python alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from ..errors import InputError

_NOT_NEGATIVE = "a finite number that is 0 or more"
_POSITIVE = "a finite number above 0"
_SHARE = "a number from 0 to below 1"
_COUNT = "a whole number of at least 1"
_COUNT_OR_0 = "a whole number of at least 0"
_SEED = "a whole number from 0 to 4294967295"


def _whole(value: Any) -> bool:
    return isinstance(value, Real) and value == int(value)


_HOLDS: dict[str, Callable[[Any], bool]] = {
    _NOT_NEGATIVE: lambda x: x >= 0,
    _POSITIVE: lambda x: x > 0,
    _SHARE: lambda x: 0 <= x < 1,
    "a number from 0 to 1": lambda x: 0 <= x <= 1,
    "a number above 0 and below 1, such as 0.999": lambda x: 0 < x < 1,
    _COUNT: lambda x: _whole(x) and x >= 1,
    _COUNT_OR_0: lambda x: _whole(x) and x >= 0,
    "-1 for whole epochs, or a whole number of at least 1": lambda x: x == -1 or (_whole(x) and x >= 1),
    _SEED: lambda x: _whole(x) and 0 <= x < 2**32,
}

RANGES: dict[str, str] = {
    **dict.fromkeys(("ce_weight", "class_weights", "kd_warmup_epochs", "kd_skip_epochs"), _NOT_NEGATIVE),
    **dict.fromkeys(("dataloader_timeout", "eval_delay", "neftune_noise_alpha", "max_grad_norm"), _NOT_NEGATIVE),
    **dict.fromkeys(("learning_rate", "weight_decay", "adam_epsilon", "warmup_steps"), _NOT_NEGATIVE),
    **dict.fromkeys(("lr_decay_epochs", "lr_decay_rate", "num_train_epochs"), _POSITIVE),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps", "ddp_timeout", "ddp_bucket_cap_mb"), _POSITIVE),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), _SHARE),
    "label_smoothing_factor": "a number from 0 to 1",
    "ema_decay": "a number above 0 and below 1, such as 0.999",
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), _COUNT),
    **dict.fromkeys(("gradient_accumulation_steps", "eval_accumulation_steps", "torch_empty_cache_steps"), _COUNT),
    **dict.fromkeys(("dataloader_prefetch_factor", "save_total_limit"), _COUNT),
    "dataloader_num_workers": _COUNT_OR_0,
    "max_steps": "-1 for whole epochs, or a whole number of at least 1",
    **dict.fromkeys(("seed", "data_seed"), _SEED),
}
"""What each number must be; None is always allowed, and a list is checked number by number."""


def check_ranges(args: Any) -> None:
    """Refuse the first number of a configuration that is out of its range.

    Raises:
        InputError: it names the argument, the number, and what is allowed.
    """
    for name, allowed in RANGES.items():
        value = getattr(args, name)
        several = isinstance(value, (list, tuple))
        for i, number in enumerate(value if several else [] if value is None else [value]):
            if not (isinstance(number, Real) and math.isfinite(number) and _HOLDS[allowed](number)):
                place = f"{name}[{i}]" if several else name
                raise InputError(f"{place} is {number}: use {allowed}.")
