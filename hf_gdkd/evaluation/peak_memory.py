"""The most memory that tensors hold while something is computed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch


def peak_mb_during(work: Callable[[], Any], device: torch.device | str = "cpu") -> float:
    """Call `work()`; returns the most MB (1e6 bytes) that tensors on the device held beyond those there before.

    From the allocator on CUDA; on a CPU from the allocations and releases that the profiler records.

    >>> round(peak_mb_during(lambda: torch.zeros(250_000).sum()), 1)
    1.0
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler would say on stderr that it starts and stops
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    held = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 1e6
