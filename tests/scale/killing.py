"""Runs of the kill test: `python killing.py FOLDER` kills runs, resumes them, and writes what happened to results.json.
With a number of kills after it, only runs that record their teacher's logits are killed, while they do.

The libraries are imported once; each run is a forked child. A kill is planned as `{"call": n}`: SIGKILL at the n-th
function call or return of the training, counted by a profile hook. With "bytes", no file may grow past that size
from there on, and the next that would kills the process in the middle of the write; with "full", that write fails
instead, as on a full disk.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import transformers.trainer
from killed_runs import CLASSES, SAMPLES, SIZE, rows, scenes, segmenters, vit
from transformers import PrinterCallback, ViTImageProcessor

from hf_gdkd import GDKDConfig, GDKDTrainer, Teacher
from hf_gdkd.commands.running import quiet, run
from hf_gdkd.data import Augmented, TrainTransform, View, collate
from hf_gdkd.data.teacher_cache import TeacherCache
from hf_gdkd.training.balance import Balance
from hf_gdkd.training.cached_teacher import CachedTeacher
from hf_gdkd.training.checkpoints import is_complete
from hf_gdkd.training.ema import EMA

SEED = 20
OPTIONS = {
    "loss": "gdkd+kd", "k": 2, "kd_weight": "auto", "kd_warmup_epochs": 1.5, "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2, "learning_rate": 3e-3, "lr_scheduler_type": "cosine", "warmup_steps": 2,
    "label_smoothing_factor": 0.1, "eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 3,
    "save_total_limit": 1, "logging_steps": 2, "report_to": "none", "disable_tqdm": True, "use_cpu": True,
    "ema_decay": 0.9, "dataloader_pin_memory": False, "resume_from_checkpoint": "last", "seed": 3,
}  # fmt: skip
# What a resumed run needs: without each of them it must end elsewhere.
BREAKS = {
    "random numbers": lambda: setattr(GDKDTrainer, "_load_rng_state", lambda *a: None),
    "epoch of the augmentation": lambda: setattr(Augmented, "set_epoch", lambda *a: None),
    "optimizer and schedule": lambda: setattr(GDKDTrainer, "_load_optimizer_and_scheduler", lambda *a: None),
    "moving average": lambda: setattr(EMA, "load", lambda *a: None),
    "automatic weights": lambda: setattr(Balance, "_load_from_state_dict", lambda *a: None),
    "data order": lambda: OPTIONS.update(ignore_data_skip=True),
}


class Watched(GDKDTrainer):
    """Dies as planned; with a plan, be it empty, counts function calls and those at which a part of a save begins."""

    kill: dict[str, int] | None = None
    calls = 0

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.saves: list[list[int]] = []
        self.records: list[list[int]] = []

    def _count(self, *event: object) -> None:
        self.calls += 1
        if self.kill and self.calls == self.kill["call"]:
            if "bytes" not in self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            if "full" not in self.kill:
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.kill["bytes"], resource.RLIM_INFINITY))

    def noting(self, record: Callable[..., None]) -> Callable[..., None]:
        """Recording that notes the calls at which it begins and ends."""

        def noted(*args: object) -> None:
            begin = self.calls
            record(*args)
            self.records.append([begin, self.calls])

        return noted

    def train(self, *args: object, **kwargs: object) -> object:
        if self.kill is not None:
            sys.setprofile(self._count)
        return super().train(*args, **kwargs)

    def _save_checkpoint(self, *args: object) -> None:
        """Model, optimizer and schedule, random state, trainer state and the removal of the checkpoint before."""
        self.saves.append([self.calls])
        super()._save_checkpoint(*args)
        self.saves[-1].append(self.calls)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self.saves[-1].append(self.calls)
        super()._save_optimizer_and_scheduler(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        self.saves[-1].append(self.calls)
        super()._save_rng_state(output_dir)
        self.saves[-1].append(self.calls)


def cache_of(folder: Path) -> TeacherCache:
    """Of the logits that a run in this folder records."""
    return TeacherCache(folder.with_name(f"{folder.name} cache"), {}, rows=SAMPLES, classes=CLASSES, views=2)


def train(folder: Path, kill: dict | None = None, trainer: type[Watched] = Watched, kind: str = "") -> None:
    """One run, or what is left of it, as scripts/distill.py has it; of the kind "cached" or "maps", or neither."""
    args = GDKDConfig(output_dir=str(folder), **OPTIONS)
    view = View(ViTImageProcessor(size={"height": SIZE, "width": SIZE}))
    student, teacher, caches = vit(1, hidden_dropout_prob=0.2), vit(2), {}
    if kind == "cached":
        caches, module = {"teacher_pixel_values": cache_of(folder)}, teacher
        teacher = CachedTeacher(caches["teacher_pixel_values"], lambda: Teacher(module))
    transform = TrainTransform(view, dict.fromkeys(caches, view), crop_scale=0.3)
    data = {
        "train_dataset": Augmented(rows(SAMPLES), transform, seed=args.seed, caches=caches),
        "eval_dataset": [{"pixel_values": view.exact([row["image"]])[0], "labels": row["labels"]} for row in rows(9)],
    }
    if kind == "maps":
        (student, teacher), data = segmenters(), scenes(args.seed)
    trainer = trainer(student, teacher, args, data_collator=collate, processing_class=view.processor, **data)
    trainer.remove_callback(PrinterCallback)
    trainer.kill = kill
    for cache in caches.values():
        cache.record = trainer.noting(cache.record)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    sys.setprofile(None)
    (folder / "calls.json").write_text(
        json.dumps({"all": trainer.calls, "saves": trainer.saves, "records": trainer.records})
    )


def fork(work, *args: object, env: dict[str, str] | None = None) -> int:
    """Start `work` in a child that ends as a script does; its process id."""
    sys.stdout.flush()
    if (pid := os.fork()) == 0:
        os.environ.update(env or {})
        code = 1
        try:
            run(lambda: work(*args))
            code = 0
        except SystemExit as end:
            code = end.code
        finally:
            sys.setprofile(None)
            if code == 1:
                sys.excepthook(*sys.exc_info())
            sys.stdout.flush()
            os._exit(code)
    return pid


def end(pid: int) -> int:
    """The exit code of a child, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def checkpoints(folder: Path) -> dict[str, bool]:
    """The checkpoints in a folder, and whether each is complete."""
    return {path.name: is_complete(path) for path in sorted(folder.glob("checkpoint-*"))}


def plans(r: random.Random, calls: dict, seconds: float) -> list[dict[str, float]]:
    """Twenty moments: in each part of a checkpoint, inside a file of it, anywhere, and by the clock."""
    parts = [[*pairwise(r.choice(calls["saves"]))][i % 4] for i in range(8)]
    return [
        *({"call": r.randint(*part)} for part in parts),
        *({"call": r.randint(*part), "bytes": int(2 ** r.uniform(0, 14))} for part in parts[:4]),
        *({"call": r.randrange(calls["all"])} for _ in range(5)),
        *({"seconds": r.uniform(0, seconds)} for _ in range(3)),
    ]


def kill(folder: Path, plan: dict[str, float]) -> int:
    """Begin a run and kill it; a run that the clock found over is begun anew, with half the time."""
    if "seconds" not in plan:
        return end(fork(train, folder, plan))
    pid = fork(train, folder)
    time.sleep(plan["seconds"])
    os.kill(pid, signal.SIGKILL)
    if (code := end(pid)) == 0:
        shutil.rmtree(folder)
        return kill(folder, {"seconds": plan["seconds"] / 2})
    return code


class DiesBeforeRotation(Watched):
    """Process 1 is slow to write its random state, and process 0 dies when its first checkpoint is done."""

    def _save_rng_state(self, output_dir: str) -> None:
        if self.args.process_index == 1:
            time.sleep(0.5)
        super()._save_rng_state(output_dir)

    def _save_checkpoint(self, *args: object) -> None:
        transformers.trainer.rotate_checkpoints = lambda **kwargs: os.kill(os.getpid(), signal.SIGKILL)
        super()._save_checkpoint(*args)


def on_two_processes(folder: Path, trainer: type[Watched] = Watched) -> list[int]:
    """One run on two gloo processes; when the first is killed, so is the second."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [{"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(2)]
    first, second = (fork(train, folder, None, trainer, env=env | rank) for rank in ranks)
    if (code := end(first)) != 0:
        os.kill(second, signal.SIGKILL)
    return [code, end(second)]


def kill_recording(folder: Path, kills: int) -> dict[str, dict]:
    """Kill runs while they record, a third of them in the middle of a write; one more is not killed."""
    r, results = random.Random(SEED), {}
    results["recording"] = {"ended": [end(fork(train, folder / "recording", {}, Watched, "cached"))]}
    records = json.loads((folder / "recording/calls.json").read_text())["records"]
    for i in range(kills):
        name, plan = f"recording-{i}", {"call": r.randint(*r.choice(records))}
        if i % 3 == 0:
            plan["bytes"] = r.randrange(SAMPLES * 2 * CLASSES)
        ended = [end(fork(train, folder / name, plan, Watched, "cached"))]
        left = sum(int(cache_of(folder / name).recorded(view).sum()) for view in range(2))
        ended.append(end(fork(train, folder / name, None, Watched, "cached")))
        results[name] = {"plan": plan, "ended": ended, "recorded": left}
    return results


def main(folder: Path, kills: int | None = None) -> None:
    quiet()
    vit(0).save_pretrained(folder / "first")  # what transformers prepares at the first save, once for all children
    results = kill_recording(folder, kills or 3)
    if kills is None:
        results |= kill_all(folder)
    (folder / "results.json").write_text(json.dumps(results, indent=2))


def kill_all(folder: Path) -> dict[str, dict]:
    r, results = random.Random(SEED), {}
    start = time.monotonic()
    results["reference"] = {"ended": [end(fork(train, folder / "reference", {}))]}
    seconds = time.monotonic() - start
    calls = json.loads((folder / "reference/calls.json").read_text())

    for i, plan in enumerate(plans(r, calls, seconds)):
        name = f"killed-{i}"
        ended, left = [kill(folder / name, plan)], [checkpoints(folder / name)]
        if r.random() < 0.3:
            ended.append(end(fork(train, folder / name, {"call": r.randrange(calls["all"] // 2)})))
            left.append(checkpoints(folder / name))
        ended.append(end(fork(train, folder / name)))
        results[name] = {"plan": plan, "ended": ended, "left": left}

    parts = [part for save in calls["saves"][1:] for part in pairwise(save)]
    for i in range(4):
        name, plan = f"full-{i}", {"call": r.randint(*r.choice(parts))}
        ended = [end(fork(train, folder / name, plan | {"bytes": int(2 ** r.uniform(0, 14)), "full": 1}))]
        left = [checkpoints(folder / name)]
        results[name] = {"plan": plan, "ended": [*ended, end(fork(train, folder / name))], "left": left}

    end(fork(train, folder / "third", {"call": calls["saves"][2][-1] + 1}))  # in the middle of an epoch
    for name in ["nothing", *BREAKS]:
        shutil.copytree(folder / "third", folder / name)
        results[name] = {"ended": [end(fork(broken, name, folder / name))]}

    results["maps"] = {"ended": [end(fork(train, folder / "maps", {}, Watched, "maps"))]}
    saves = json.loads((folder / "maps/calls.json").read_text())["saves"]
    for i in range(2):
        name, plan = f"maps-{i}", {"call": r.randint(*r.choice([*pairwise(saves[i])]))}
        ended = [end(fork(train, folder / name, plan, Watched, "maps"))]
        results[name] = {"plan": plan, "ended": [*ended, end(fork(train, folder / name, None, Watched, "maps"))]}

    results["two"] = {"ended": on_two_processes(folder / "two")}
    killed = on_two_processes(folder / "two killed", DiesBeforeRotation)
    results["two killed"] = {"left": [checkpoints(folder / "two killed")], "killed": killed}
    results["two killed"]["ended"] = on_two_processes(folder / "two killed")
    return results


def broken(name: str, folder: Path) -> None:
    BREAKS.get(name, lambda: None)()
    train(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
