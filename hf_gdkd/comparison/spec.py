"""What a comparison of losses runs on one data set: its YAML file turned into runs of distill.py."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from ..commands.arguments.parsing import parse
from ..commands.arguments.settings_file import as_flags, with_loss_name
from ..errors import InputError, first_sentence
from ..publishing.wording import CLASSIFICATION, WORDINGS
from .results import CHAPTERS, Row, Section, Trial

Settings = dict[str, Any]  # of runs, by the names of distill.py's flags
Metrics = dict[str, Any]  # what came out of a run, as its metrics.json holds it
ALWAYS: Settings = {"student_init": "random", "disable_tqdm": True, "overwrite": True}
ONCE: Settings = {"eval_strategy": "no", "save_strategy": "no"}
EVERY_EPOCH: Settings = {  # the output folder then holds the last epoch, its only checkpoint the best
    **{"eval_strategy": "epoch", "save_strategy": "best", "save_only_model": True, "save_total_limit": 1},
}
KINDS_OF_VALUES = {
    **dict.fromkeys(("students", "losses", "validation", "training"), (dict, "a mapping")),
    **{"seeds": (list, "a list of numbers"), "trials": (int, "a number"), "tuning_seed": (int, "a number")},
    **dict.fromkeys(("dataset", "task", "test_split", "chapter", "remarks"), (str, "text")),
}
TEACHER_CACHES = ("new", "full")  # what a row may have: recorded in the run, or before
SET_HERE = ("dataset", "task", "train_split", "eval_split", "validation_rows", "seed", "teacher", "output_dir")


@dataclass(frozen=True)
class Job:
    """Work for a worker: what to do (`KINDS`), the flags to do it with, and the folder where the result goes."""

    kind: str
    folder: Path
    flags: Settings
    then: Job | None = None  # what the same worker does next, unless the loss was not finite

    def result(self) -> Metrics | None:
        """Read `metrics`, or `error` where the loss was not finite; None if it is not done, or was with other flags."""
        try:
            result = json.loads((self.folder / f"{self.kind}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return result if result["flags"] == self.flags else None

    def metrics(self) -> Metrics:
        return (self.result() or {}).get("metrics", {})

    def leave(self, result: Metrics) -> None:
        """Write `metrics`, or `error`, for `result`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"flags": self.flags} | result, indent=2)
        (self.folder / f"{self.kind}.json").write_text(text + "\n", encoding="utf-8")

    def test(self, split: str) -> Job:
        """The test of what this job leaves, on another split."""
        flags = {key: value for key, value in self.flags.items() if key not in ("train_rows", "validation_rows")}
        return Job("test", self.folder, flags | {"eval_split": split})


@dataclass
class Comparison:
    """What one YAML file says.

    Raises:
        InputError: a key that is missing or unknown, budgets that differ, a test split that would be looked at, or a
            setting that distill.py refuses.
    """

    name: str
    folder: Path
    dataset: str
    teacher: str | Settings  # a model, or the settings that train one
    students: dict[str, Settings]
    losses: dict[str, list[Settings]]  # trials by row of the table; a row's name is its loss, unless a trial names one
    trials: int  # of every row
    seeds: list[int]
    tuning_seed: int
    validation: Settings  # what tuning and the choice of the best epoch look at: validation_rows or eval_split
    test_split: str
    training: Settings = field(default_factory=dict)  # of all students
    carried_seeds: list[int] | None = None  # of the settings that were tuned on other data sets; None: all seeds
    chapter: str = ""  # of the report; unset, that of the task
    remarks: str = ""  # for the report, on what it shows
    task: str = CLASSIFICATION
    others: list[Comparison] = field(default_factory=list)  # whose tuned settings are tried here too

    @classmethod
    def read(cls, path: Path, output_dir: Path) -> Comparison:
        try:
            spec = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise InputError(f"{path} cannot be read: {first_sentence(error)}") from error
        keys = {each.name for each in fields(cls)} - {"name", "folder", "others"}
        if not isinstance(spec, dict):
            raise InputError(f"{path} is not a comparison: write a mapping with the keys {', '.join(sorted(keys))}.")
        for what, names in (
            ("lacks", keys - {"training", "carried_seeds", "chapter", "remarks", "task"} - set(spec)),
            ("has an unknown key", set(spec) - keys),
        ):
            if names:
                raise InputError(f"{path} {what} {min(map(str, names))}: its keys are {', '.join(sorted(keys))}.")
        for key, (kind, name) in KINDS_OF_VALUES.items():
            if not isinstance(spec.get(key, kind()), kind):
                raise InputError(f"{path}: {key} is {spec[key]!r}: write {name}.")
        for key, kind in {"students": dict, "losses": list}.items():
            for name, value in spec[key].items():
                if not isinstance(value, kind) or not all(isinstance(each, dict | str) for each in value):
                    wanted = "a mapping of settings" if kind is dict else "a list of mappings, one for each trial"
                    raise InputError(f"{path}: {name} of {key} is {value!r}: write {wanted}.")
        return cls(path.stem, output_dir / path.stem, **spec)

    def __post_init__(self) -> None:
        self.losses = {row: [with_loss_name(trial) for trial in trials] for row, trials in self.losses.items()}
        for row, trials in self.losses.items():
            if len(trials) not in (1, self.trials):
                raise InputError(
                    f"{self.name}: {row} has {len(trials)} trials, and trials is {self.trials}: list as many "
                    "for every loss, or one, which is then not tuned."
                )
        if self.task not in WORDINGS:
            raise InputError(f"{self.name}: task is {self.task!r}: write {' or '.join(WORDINGS)}.")
        if missing := {"ce", "kd"} - self.losses.keys():
            raise InputError(f"{self.name}: losses lacks {min(missing)}, with which the others are compared: add it.")
        trained = {"teacher": self.teacher} if isinstance(self.teacher, dict) else {}
        for what, settings in {"validation": self.validation, **trained}.items():
            split = "validation_rows" not in settings and settings.get("eval_split", self.test_split)
            if split == self.test_split:
                raise InputError(
                    f"{self.name}: {what} would look at the test split {self.test_split}: use validation_rows, "
                    "or another eval_split."
                )
        if not set(self.carried_seeds or ()) <= set(self.seeds):
            raise InputError(f"{self.name}: carried_seeds has some that are not among the seeds: remove them.")
        trials = [trial for trials in self.losses.values() for trial in trials]
        for settings in (self.training, *self.students.values(), *trials):
            if wrong := settings.keys() & set(SET_HERE):
                raise InputError(f"{self.name}: {min(wrong)} cannot be set for single runs: remove it.")
            if (cache := settings.get("teacher_cache", "new")) not in TEACHER_CACHES:
                raise InputError(f"{self.name}: teacher_cache is {cache!r}: write {' or '.join(TEACHER_CACHES)}.")
        if self.cached and self.trials != 1:
            raise InputError(
                f"{self.name}: trials is {self.trials}, and with a teacher_cache nothing is tuned: write 1."
            )
        used = {trial.get("loss", row) for row, each in self.losses.items() for trial in each} if self.cached else set()
        if missing := used - self.losses.keys():
            raise InputError(f"{self.name}: losses lacks {min(missing)} with a live teacher, to compare with: add it.")
        for job in self.teachers() + (self.tuning() or self.finals(self.seeds[:1])):
            parse(as_flags(job.flags))

    @property
    def metric(self) -> str:
        """The key of what is compared, in what a run measures."""
        return WORDINGS[self.task].judged

    @property
    def cached(self) -> bool:
        """Whether teachers' caches are compared, and not losses: then nothing is tuned, and no epoch is chosen."""
        return any("teacher_cache" in trial for trials in self.losses.values() for trial in trials)

    def teachers(self) -> list[Job]:
        if isinstance(self.teacher, str):
            return []
        flags = self._always() | ONCE | {"loss": "ce"} | self.teacher
        digest = hashlib.sha256(json.dumps(flags, sort_keys=True).encode()).hexdigest()
        return [Job("train", self.folder / f"teacher-{digest[:8]}", flags)]  # students of another one are trained anew

    def _always(self) -> Settings:
        task = {} if self.task == CLASSIFICATION else {"task": self.task}  # the default is no part of what was run
        return ALWAYS | {"dataset": self.dataset} | task

    def _flags(self, student: str, row: str, settings: Settings, seed: int) -> Settings:
        flags = self._always() | {"seed": seed, "loss": row}
        flags |= self.validation | self.training | self.students[student] | settings
        if flags["loss"] != "ce":
            flags["teacher"] = [str(self.teachers()[0].folder) if self.teachers() else self.teacher]
        if "teacher_cache" in flags:
            flags["teacher_cache"] = [str(self._cache(flags, self.validation | self.training | self.students[student]))]
        return flags

    def _cache(self, flags: Settings, shared: Settings) -> Path:
        """The folder of the teacher's logits, the same for all rows whose images are the same."""
        of = [flags["teacher"], flags["seed"], flags.get("cache_views"), shared]
        digest = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()
        return self.folder / "caches" / f"{flags.get('cache_views')}-views-seed{flags['seed']}-{digest[:8]}"

    def trials_of(self, student: str, row: str) -> list[Job]:
        folder, seed = self.folder / "tuning" / student / row, self.tuning_seed
        trials = self.losses[row]
        return [Job("train", folder / describe(t), self._flags(student, row, t, seed) | ONCE) for t in trials]

    def tuning(self) -> list[Job]:
        if self.cached:
            return []
        return [job for student in self.students for row in self.tuned_rows for job in self.trials_of(student, row)]

    @property
    def tuned_rows(self) -> list[str]:
        """The rows with several trials; the only one of a row is its setting as it is."""
        return [row for row, trials in self.losses.items() if len(trials) > 1]

    def chosen(self, student: str, row: str) -> Settings:
        """The trial that was best on the validation rows; the first of several."""
        scores = [job.metrics().get(self.metric, -1.0) for job in self.trials_of(student, row)]
        return self.losses[row][scores.index(max(scores))]

    def tuned(self, student: str, row: str) -> dict[str, Settings]:
        """The settings to train with every seed, by the data set that they were tuned on."""
        others = self.others if self.carried_seeds != [] and row in self.tuned_rows else []
        tuned = [other for other in others if other.task == self.task and not (self.cached or other.cached)]
        there = [other for other in tuned if student in other.students and row in other.losses]
        return {each.name: each.chosen(student, row) for each in (self, *there)}

    def final(self, student: str, row: str, settings: Settings, seed: int) -> Job:
        folder = self.folder / "final" / student / row / describe(settings) / f"seed{seed}"
        when = ONCE if self.cached else EVERY_EPOCH | {"metric_for_best_model": self.metric}
        job = Job("train", folder, self._flags(student, row, settings, seed) | when)
        return replace(job, then=self.test(job)) if self.cached else job  # nothing is chosen by other runs

    def seeds_of(self, tuned_on: str) -> list[int]:
        """The seeds that a setting is trained with."""
        return self.seeds if tuned_on == self.name or self.carried_seeds is None else self.carried_seeds

    def finals(self, seeds: Sequence[int] | None = None) -> list[Job]:
        """Seed by seed, so that a machine that grows busy slows all losses alike."""
        rows = [(student, row) for student in self.students for row in self.losses]
        tuned = [(*pair, *each) for pair in rows for each in self.tuned(*pair).items()]
        jobs = [
            self.final(student, row, settings, seed)
            for seed in seeds or self.seeds
            for student, row, tuned_on, settings in tuned
            if seed in self.seeds_of(tuned_on)
        ]
        return list({job.folder: job for job in jobs}.values())

    def peak(self, student: str, row: str) -> Job:
        flags = self._flags(student, row, self.chosen(student, row), self.tuning_seed) | ONCE | {"max_steps": 3}
        return Job("peak", self.folder / "peak" / student / row, flags)

    def peaks(self) -> list[Job]:
        if self.cached:
            return []
        return [self.peak(student, row) for student in self.students for row in self.losses]

    def test(self, job: Job) -> Job:
        return job.test(self.test_split)

    def tests(self) -> list[Job]:
        return [self.test(job) for job in self.teachers() + self.finals() if job.metrics()]

    def rows(self) -> list[Row]:
        """The rows of the report, from what the jobs left."""
        return [
            self.row(student, row, tuned_on, settings)
            for student in self.students
            for row in self.losses
            for tuned_on, settings in self.tuned(student, row).items()
        ]

    def row(self, student: str, row: str, tuned_on: str, settings: Settings) -> Row:
        jobs = {seed: self.final(student, row, settings, seed) for seed in self.seeds_of(tuned_on)}
        metrics = {seed: job.metrics() for seed, job in jobs.items() if job.metrics()}
        tested = {seed: self.test(jobs[seed]).metrics() for seed in metrics}
        return Row(
            dataset=self.name, student=student, loss=row, tuned_on=tuned_on, settings=settings,
            last={seed: numbers["last"][self.metric] for seed, numbers in tested.items()},
            best={seed: numbers["best"][self.metric] for seed, numbers in tested.items()},
            ms_per_step=[numbers["ms_per_step"] for numbers in metrics.values() if "ms_per_step" in numbers],
            extra_parameters=max((numbers["extra_parameters"] for numbers in metrics.values()), default=0),
            peak_mb=self.peak(student, row).metrics().get("peak_mb"),
        )  # fmt: skip

    def section(self) -> Section:
        about = Path(self.dataset, "about.md")
        teacher = [self.test(job).metrics()["last"] for job in self.teachers()]
        trials = [
            Trial(student, row, trial, job.metrics().get(self.metric), trial == self.chosen(student, row))
            for student in (() if self.cached else self.students)
            for row in self.tuned_rows
            for trial, job in zip(self.losses[row], self.trials_of(student, row), strict=True)
        ]
        return Section(
            self.name, about.read_text(encoding="utf-8") if about.is_file() else self.dataset, self.rows(), trials,
            teacher[0] if teacher else None, {"validation": self.validation, "training": self.training} | self.students,
            self.remarks, WORDINGS[self.task], self.chapter or CHAPTERS[self.task],
        )  # fmt: skip


def describe(settings: Settings) -> str:
    """Settings as the name of a folder."""
    return re.sub(r"[^\w=.,-]+", "_", ",".join(f"{key}={value}" for key, value in settings.items())) or "default"
