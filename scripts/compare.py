"""Compare losses fairly: a teacher, students, losses and seeds, one YAML file for each data set.

    python scripts/compare.py scripts/compare/fashion-mnist.yaml scripts/compare/glyphs.yaml --report RESULTS.md

1. The teacher is trained once. 2. Every loss is tuned for every student with the same number of trials, on rows that
are no part of the test split. 3. The best trial of each is trained with every seed, and so is the one that was best on
the other data sets, with carried_seeds if the file has them. 4. The test split is read once, at the end. 5. Tables,
CSVs and pictures are written.

A file whose rows have `teacher_cache: new` (recorded in the run) or `full` compares teachers' caches: nothing is tuned,
and the report has a chapter for it. A command writes the chapters that it has rows for; others in the file stay.

Every run is one of `distill.py`. What is finished is not run again, so the same command goes on after an interruption.
--workers runs go side by side on each GPU, or on the CPU. With --stacked the runs of a student that differ in loss,
weights and seed alone are trained together on one GPU, as a stack (hf_gdkd/comparison/stack.py). `--repeat cnn gdkd`
trains the teacher, ce and this one row anew, with the settings that the report's CSV holds, and says whether their
difference is in the reported interval.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take seconds
    from hf_gdkd.commands.arguments.help import show_help

    show_help("compare")

import gc
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import torch
from tqdm.auto import tqdm

from hf_gdkd.commands.arguments.other_flags import compare_parser
from hf_gdkd.commands.arguments.parsing import parse
from hf_gdkd.commands.arguments.settings_file import as_flags
from hf_gdkd.commands.running import run
from hf_gdkd.comparison.cached import write_cached_chapter
from hf_gdkd.comparison.reproduction import reproduction
from hf_gdkd.comparison.results import paired, read_reported
from hf_gdkd.comparison.spec import Comparison, Job, Metrics
from hf_gdkd.comparison.stacked_jobs import do_stacked
from hf_gdkd.comparison.stacked_losses import check_stackable
from hf_gdkd.comparison.tables import write_report
from hf_gdkd.data.loading import Data
from hf_gdkd.data.opened import Opened
from hf_gdkd.errors import TrainingError
from hf_gdkd.evaluation.peak_memory import peak_mb_during
from hf_gdkd.scripts import distill
from hf_gdkd.scripts.benchmark_losses import provenance
from hf_gdkd.tasks.registry import task_of
from hf_gdkd.training.teacher import Teacher


def train(job: Job) -> Metrics:
    (job.folder / "test.json").unlink(missing_ok=True)
    return distill.main(as_flags(job.flags | {"output_dir": str(job.folder)}))


def peak(job: Job) -> Metrics:
    """The most MB (1e6 bytes) that tensors held in a run of a few steps: models, optimizer, batch, activations."""
    return {"peak_mb": peak_mb_during(lambda: train(job), "cuda" if torch.cuda.is_available() else "cpu")}


def test(job: Job) -> Metrics:
    """The numbers of what a run left, `last` epoch and `best`, on the test split."""
    script, args = parse(as_flags(job.flags | {"output_dir": str(job.folder)}))
    task = task_of(script.task)
    data = _test_data(script.task, script.dataset, json.dumps(script.data_options()))
    numbers = {}
    for epoch, folders in {"last": [job.folder], "best": job.folder.glob("checkpoint-*")}.items():
        for folder in folders:
            model = Teacher.load(str(folder), kind=task.kind).to(args.device)
            model.match(data.label_names, model.view, data_name=data.name)
            options = {"columns": model.columns, "window": script.window, "device": args.device}
            _, numbers[epoch] = task.measure(model.model, data, model.view, **options)
    return {"best": numbers["last"]} | numbers


@lru_cache(1)
def _test_data(task: str, dataset: str, options: str) -> Data:
    data = task_of(task).load_data(dataset, **json.loads(options))
    data.eval = Opened(data.eval)
    return data


KINDS: dict[str, Callable[[Job], Metrics]] = {"train": train, "peak": peak, "test": test}


def work(job: Job) -> None:
    """Do a job and leave its result; what it prints goes to log.txt in its folder."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with open(job.folder / "log.txt", "a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            left = {"metrics": KINDS[job.kind](job)}
        except TrainingError as error:  # a loss that is not finite is a result too
            left = {"error": str(error)}
    gc.collect()  # a Trainer refers to itself, and to its images
    job.leave(left)
    if job.then is not None and "metrics" in left:
        work(job.then)


def _end_with_parent() -> None:
    """Watch the parent: a worker that outlived a killed command would train on and then wait forever."""

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


class Workers:
    """Processes that take jobs: so many a GPU, or on a CPU; a single one is this process.

    Use it as a context manager.
    """

    def __init__(self, workers: int) -> None:
        gpus = [str(gpu) for gpu in range(torch.cuda.device_count())]
        if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
            gpus = visible.split(",")[: len(gpus)]
        threads = {"OMP_NUM_THREADS": "1"} if workers > 1 or not gpus else {}
        self.places = [threads | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}) for gpu in gpus or [None]] * workers
        self.pools: list[ProcessPoolExecutor] = []

    def __enter__(self) -> Workers:
        self._stack = ExitStack()
        for place in self.places if len(self.places) > 1 else []:
            os.environ.update(place)  # for the process that starts now
            pool = ProcessPoolExecutor(1, get_context("spawn"), _end_with_parent)
            self.pools.append(self._stack.enter_context(pool))
            self.pools[-1].submit(os.getpid)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)

    def run(self, title: str, jobs: Sequence[Job]) -> None:
        """Do those of the jobs that are not done.

        Raises:
            TrainingError: a worker died.
        """
        left = [job for job in jobs if job.result() is None]
        with tqdm(total=len(jobs), initial=len(jobs) - len(left), desc=title) as bar:
            if not self.pools:
                for job in left:
                    work(job)
                    bar.update()
            free, busy = list(self.pools), {}
            for job in left if self.pools else ():
                if not free:
                    free = self._wait(busy, bar)
                pool = free.pop()
                busy[pool.submit(work, job)] = pool
            while busy:
                self._wait(busy, bar)

    def _wait(self, busy: dict[Future, ProcessPoolExecutor], bar: tqdm) -> list[ProcessPoolExecutor]:
        done, _ = wait(busy, return_when=FIRST_COMPLETED)
        try:
            for future in done:
                future.result()
        except BrokenProcessPool as error:
            raise TrainingError(
                "a worker process died, probably for lack of memory: run the same command again, with fewer --workers; "
                "what is finished is kept."
            ) from error
        bar.update(len(done))
        return [busy.pop(future) for future in done]


def main(argv: Sequence[str] | None = None) -> None:
    options = compare_parser().parse_args(argv)
    appendix = reproduction(options.reported) if options.reported else ""
    compared = [Comparison.read(path, options.output_dir) for path in options.comparisons]
    if options.stacked:
        for job in (job for each in compared for job in each.tuning() or each.finals(each.seeds[:1])):
            check_stackable(parse(as_flags(job.flags))[1])
    with Workers(options.workers) as workers:
        workers.run("teachers", [job for each in compared for job in each.teachers()])
        if options.repeat:
            return repeat(compared[0], *options.repeat, options.report, workers)
        if options.stacked:
            stacked(compared)
        workers.run("tuning", [job for each in compared for job in each.tuning()])
        workers.run("training", [job for each in compared for job in each.finals()])
        for each in compared:
            each.others = [other for other in compared if other is not each]
        workers.run("settings tuned elsewhere", [job for each in compared for job in each.finals()])
        workers.run("memory", [job for each in compared for job in each.peaks()])
        workers.run("testing", [job for each in compared for job in each.tests()])
    words = ["python", "scripts/compare.py", *(sys.argv[1:] if argv is None else argv)]
    about = {
        key: value
        for key, value in provenance("cuda" if torch.cuda.is_available() else "cpu").items()
        if key != "threads"
    }
    tuned, cached = ([each.section() for each in compared if each.cached is cached] for cached in (False, True))
    if tuned:
        write_report(options.report, tuned, words, about, appendix)
    if cached:
        write_cached_chapter(options.report, cached, words, about)
    print(f"written to {options.report}")


def stacked(compared: Sequence[Comparison]) -> None:
    """Tune and train in stacks, what is not done yet."""
    for each in compared:
        with TemporaryDirectory() as pixels:
            do_stacked(each.tuning(), Path(pixels), None)
            do_stacked(each.finals(), Path(pixels), each.test_split)


def repeat(comparison: Comparison, student: str, loss: str, report: Path, workers: Workers) -> None:
    """Train ce and one row anew with their reported settings; SystemExit(1) when the difference is not as reported."""
    reported = read_reported(report, comparison.name, student)
    jobs = {
        row: {seed: comparison.final(student, row, reported[row]["settings"], seed) for seed in comparison.seeds}
        for row in ("ce", loss)
    }
    workers.run("training", [job for seeds in jobs.values() for job in seeds.values()])
    tests = {row: {seed: comparison.test(job) for seed, job in seeds.items()} for row, seeds in jobs.items()}
    workers.run("testing", [job for seeds in tests.values() for job in seeds.values()])
    key = comparison.metric
    last = {row: {s: job.metrics()["last"][key] for s, job in seeds.items()} for row, seeds in tests.items()}
    difference, (low, high) = paired(last[loss], last["ce"]).mean, reported[loss]["to_ce"]
    print(f"{student}, {loss} less ce: {100 * difference:+.2f}; reported: {100 * low:+.2f} to {100 * high:+.2f}")
    if not low <= difference <= high:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
