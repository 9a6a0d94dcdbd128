"""Run the tests that need a GPU, and the benchmarks, and write what was seen to a page.

    python tests/gpu/report.py --output BENCHMARKS.md

Nothing is downloaded. The page is written whatever fails, and the exit code is 1 where something did.
"""

import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "Tests": "-m pytest tests/gpu -m gpu -rA --tb=short -q --color=no",
    "Losses": "scripts/benchmark_losses.py",
    "Trainer": "scripts/benchmark_trainer.py",
}
KEPT = ("PASSED", "FAILED", "ERROR", "SKIPPED", "E  ")  # of what pytest prints


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "BENCHMARKS.md", help="page to write")
    options = parser.parse_args(argv)
    parts, failed = [heading()], []
    for title, command in COMMANDS.items():
        print(f"{title}: python {command}", flush=True)
        start = time.perf_counter()
        code, said = run(command.split())
        failed += [title] if code else []
        result = f"exit code {code}, {time.perf_counter() - start:.0f} s"
        parts.append(f"## {title}\n\n`python {command}`: {result}\n\n```text\n{shortened(title, said)}\n```\n")
        print(result, flush=True)
    options.output.write_text("\n".join(parts), encoding="utf-8")
    print(f"written to {options.output}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def run(words: list[str]) -> tuple[int, str]:
    """The exit code of a Python command in the repository, and what it printed; on failure also its errors."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {"CUDA_VISIBLE_DEVICES": "0", **os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, text=True, capture_output=True)
    return done.returncode, done.stdout + (done.stderr[-5000:] if done.returncode else "")


def shortened(title: str, said: str) -> str:
    """Of the tests the line of each and the errors; of the benchmarks everything."""
    lines = said.strip().splitlines()
    if title != "Tests":
        return "\n".join(lines)
    return "\n".join([line for line in lines[:-1] if line.startswith(KEPT)] + lines[-1:])


def heading() -> str:
    """When, on what, with what."""
    gpu = torch.cuda.is_available()
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    about = {
        "date": datetime.date.today().isoformat(),
        "commit": git.stdout.strip() or "unknown",
        "GPU": f"{torch.cuda.get_device_name()} ({torch.cuda.device_count()})"
        if gpu
        else "none: the tests are skipped",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "Python": platform.python_version(),
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in about.items())
    return f"# Benchmarks and tests on a GPU\n\nWritten by `make gpu`.\n\n| | |\n|---|---|\n{rows}\n"


if __name__ == "__main__":
    sys.exit(main())
