"""`--profile`: a table of the start-up, once, of parts that add up to the time that passed."""

import time
from types import SimpleNamespace

import psutil

from hf_gdkd.commands import start_up
from hf_gdkd.commands.start_up import StartUp


def test_the_table_holds_each_part_once_and_their_sum(monkeypatch, capsys):
    now = iter([10.0, 11.5, 14.0, 14.25])
    monkeypatch.setattr(start_up.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(start_up, "process_age", lambda: 6.0)
    clock, main, other = StartUp(), SimpleNamespace(is_world_process_zero=True), None
    clock.done("data")
    clock.on_train_begin(other, main, other)
    clock.on_step_end(other, main, other)
    clock.on_step_end(other, main, other)  # later steps say nothing
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["start-up", "seconds"], ["imports", "6.00"], ["data", "1.50"], ["trainer", "2.50"], ["first", "step", "0.25"],
        ["in", "all", "10.25"],
    ]  # fmt: skip


def test_the_age_of_a_process_is_the_time_since_it_was_started():
    before = start_up.process_age()
    time.sleep(0.2)
    assert 0.19 <= start_up.process_age() - before < 5
    assert abs(before - (time.time() - psutil.Process().create_time())) < 5  # which is about a second off
