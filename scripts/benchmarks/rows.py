"""The rows of a benchmark: figures with their spread, the versions and the hardware, written as they come."""

from __future__ import annotations

import csv
import datetime
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

COLUMNS = "group name setting unit p50 p20 p80 rounds yardstick ratio_p50 ratio_p20 ratio_p80 peak_mb device threads"
COLUMNS = [
    *COLUMNS.split(),
    *(LIBRARIES := ("torch", "transformers", "accelerate", "timm")),
    "python",
    "commit",
    "date",
]


class Rows:
    """A CSV that grows row by row: what was measured before something ends the run is kept."""

    def __init__(self, path: Path) -> None:
        self.path, self.about = path, about()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.DictWriter(file, COLUMNS).writeheader()

    def add(
        self,
        group: str,
        name: str,
        values: Sequence[float],
        *,
        setting: str = "",
        unit: str = "ms",
        against: tuple[str, Sequence[float]] | None = None,
        peak_mb: float | None = None,
    ) -> None:
        """Add the median and the 20th and 80th percentile of values, and of their ratios to a yardstick's in turn."""
        row = {"group": group, "name": name, "setting": setting, "unit": unit, "rounds": len(values), **spread(values)}
        if against is not None:
            ratios = [own / other for own, other in zip(values, against[1], strict=True)]
            row |= {"yardstick": against[0], **{f"ratio_{key}": value for key, value in spread(ratios).items()}}
        row |= {} if peak_mb is None else {"peak_mb": f"{peak_mb:.5g}"}
        self._write(row)

    def add_row(self, group: str, name: str, setting: str, yardstick: str, found: Mapping[str, Any]) -> None:
        """Add a row of `benchmark_losses`."""
        row = {"group": group, "name": name, "setting": setting, "unit": "ms", "yardstick": yardstick}
        row |= {p: found[f"ms_{p}"] for p in ("p50", "p20", "p80")}
        self._write(row | {key: found[key] for key in COLUMNS if key in found and key not in self.about})

    def _write(self, row: dict[str, Any]) -> None:
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(row | self.about)
        ratio = f"  {row['ratio_p50']} x {row['yardstick']}" if "yardstick" in row else ""
        figure = f"{row['p50']} {row['unit']} ({row['p20']} to {row['p80']}){ratio}"
        print(f"{row['group']}: {row['name']} {row['setting']}: {figure}", flush=True)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV; none where there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def spread(values: Sequence[float]) -> dict[str, str]:
    low, *_, high = statistics.quantiles(values, n=5, method="inclusive") if len(values) > 1 else (values[0], values[0])
    return {"p50": f"{statistics.median(values):.5g}", "p20": f"{low:.5g}", "p80": f"{high:.5g}"}


def about() -> dict[str, str]:
    """Hardware, versions and commit, the same for all rows."""
    root = Path(__file__).resolve().parents[2]
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "threads": str(torch.get_num_threads()),
        **{name: version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "commit": git.stdout.strip() or "unknown",
        "date": datetime.date.today().isoformat(),
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
