"""Run the benchmark on a GPU and the tests that need one, and write what was seen to BENCHMARKS.md.

    python tests/gpu/report.py                                        # about 8 minutes
    python tests/gpu/report.py --folder OUT --seconds 240             # elsewhere, and shorter

Nothing is downloaded or installed. Every figure and every test's result is written as soon as it is known, so that a
run that is cut off keeps what it had. The exit code is 1 where something failed, or found no time.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = "-m pytest tests/gpu -m gpu -n 6 -v --tb=short --color=no --durations=10 -o console_output_style=classic"
FIGURES_SHARE = 0.65  # of the time


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks", help="for gpu.csv and what was printed")
    parser.add_argument("--page", type=Path, default=ROOT / "BENCHMARKS.md", help="page to write")
    parser.add_argument("--seconds", type=float, default=480, help="at most, all in all")
    parser.add_argument("--tiny", action="store_true", help="try the code: figures that mean nothing, on a CPU too")
    args = parser.parse_args(argv)
    folder, end, failed = args.folder.resolve(), time.monotonic() + args.seconds, []
    folder.mkdir(parents=True, exist_ok=True)
    seconds = args.seconds * FIGURES_SHARE
    figures = f"scripts/benchmark.py gpu --folder {folder} --seconds {seconds} {'--tiny' if args.tiny else ''}"
    for name, command, limit in (("figures", figures, seconds + 15), ("tests", TESTS, args.seconds)):
        start = time.monotonic()
        code = run(command.split(), folder / f"gpu_{name}.log", min(limit, end - start))
        failed += [name] if code else []
        print(f"{name}: exit code {code}, {time.monotonic() - start:.0f} s", flush=True)
    page = f"scripts/benchmark.py page --folder {folder} --page {args.page.resolve()}"
    failed += ["page"] if run(page.split(), folder / "gpu_page.log", 60) else []
    print(f"failed: {', '.join(failed)}" if failed else "nothing failed")
    return 1 if failed else 0


def run(words: list[str], log: Path, seconds: float) -> int:
    """The exit code of a Python command in the repository, whose output goes to a file; 124 where it took too long."""
    with tempfile.TemporaryDirectory() as site, log.open("w") as file:
        link_package(Path(site))
        path = os.pathsep.join([site, *filter(None, [os.environ.get("PYTHONPATH")])])
        env = {"CUDA_VISIBLE_DEVICES": "0", **os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
        env |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return 124
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)  # also the processes that it started


def link_package(site: Path) -> None:
    """Put together hf_gdkd as it would be installed: its scripts and cards are other folders of the repository."""
    (site / "hf_gdkd").mkdir()
    for path in (*(ROOT / "hf_gdkd").iterdir(), ROOT / "scripts", ROOT / "model_cards"):
        (site / "hf_gdkd" / path.name).symlink_to(path)


if __name__ == "__main__":
    sys.exit(main())
