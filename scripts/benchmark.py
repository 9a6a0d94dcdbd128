"""Measure what distillation costs, and write the figures to benchmarks/ and to BENCHMARKS.md.

python scripts/benchmark.py        # on a CPU, as ratios: `make bench`
python scripts/benchmark.py gpu    # on a GPU: `make gpu` does that, beside the tests that need one
python scripts/benchmark.py page   # the page alone, from the figures that are there
"""

import argparse
import warnings
from importlib import import_module
from pathlib import Path

from hf_gdkd.scripts.benchmarks.page import write

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    """The exit code: 1 where a figure is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("where", nargs="?", choices=["cpu", "gpu", "page"], default="cpu", help="what to measure on")
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks", help="where the CSV files are")
    parser.add_argument("--page", type=Path, default=ROOT / "BENCHMARKS.md", help="page to write")
    parser.add_argument("--seconds", type=float, default=600, help="start no further check after that time")
    parser.add_argument("--tiny", action="store_true", help="try the code: tiny models, and figures that mean nothing")
    args = parser.parse_args(argv)
    missing = []
    if args.where != "page":
        where = import_module(f"hf_gdkd.scripts.benchmarks.{args.where}")
        missing = where.measure(args.folder / f"{args.where}.csv", seconds=args.seconds, tiny=args.tiny)
    write(args.page, args.folder)
    print(f"missing: {', '.join(missing)}" if missing else "all measured")
    return 1 if missing else 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*CUDA.*")
    raise SystemExit(main())
