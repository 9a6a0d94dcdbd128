"""The scripts' mains against a local Hub, each in a fork of one process: its imports take longer than most runs.

    with Forks(hub, tmp_path) as forks:
        done = forks("push", "runs/student", "--hub_model_id", "tester/student")
        assert done.returncode == 0, done.stderr

A run starts with empty caches, in `folder`, and sleeps no longer than a moment: `naps` of what is returned lists what
it wanted to sleep, in seconds. After two minutes it is ended (code -14).
"""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[2]


class Forks:
    def __init__(self, hub, folder):
        self.folder = Path(folder)
        env = {**os.environ, **hub.env(home=self.folder / "home"), "PYTHONPATH": str(ROOT)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, __file__], cwd=folder, env=env, text=True, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()  # the end of its input may not come: what a test forked since holds it open
        self.process.communicate()

    def __call__(self, script, *words, cwd=".", **env):
        """Run a script; or "python", with the code as the one word. `env` is for this run alone."""
        shutil.rmtree(self.folder / "home", ignore_errors=True)
        print(json.dumps([script, words, cwd, env]), file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        out, err, naps = ((self.folder / name).read_text() for name in ("out", "err", "naps"))
        return SimpleNamespace(returncode=code, stdout=out, stderr=err, naps=[float(nap) for nap in naps.split()])


def serve():
    from hf_gdkd.commands import image_analysis  # noqa: F401
    from hf_gdkd.commands.running import run
    from hf_gdkd.scripts import analyze, distill, evaluate, push

    mains = {"analyze": analyze.main, "distill": distill.main, "evaluate": evaluate.main, "push": push.main}
    mains["python"] = lambda words: exec(words[0], {})
    gc.freeze()  # a fork then copies less
    for line in sys.stdin:
        script, words, cwd, env = json.loads(line)
        fork = get_context("fork").Process(target=in_fork, args=(cwd, env, run, partial(mains[script], words)))
        fork.start()
        fork.join()
        print(fork.exitcode, flush=True)


def in_fork(cwd, env, run, main):
    """Run a main with an output, a folder, an environment and a time of its own."""
    signal.alarm(120)
    for number, name in enumerate(("out", "err"), start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(env)
    sleep, naps = time.sleep, open("naps", "w", buffering=1)  # noqa: SIM115
    time.sleep = lambda seconds: (print(seconds, file=naps), sleep(min(seconds, 0.01)))
    os.chdir(cwd)
    os.chdir(cwd)
    run(main)


if __name__ == "__main__":
    serve()
