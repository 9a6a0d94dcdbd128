"""With several processes, all save the state together when a worker of one dies."""

from pathlib import Path

from launch import launch

WORKER = Path(__file__).with_name("dead_worker.py")


def test_all_processes_end_and_go_on_exactly(tmp_path):
    out = launch(tmp_path, 2, WORKER)
    assert out.count("goes on exactly") == 2
    assert "killed by signal: Killed. The state after step" in out or "exited unexpectedly. The state after" in out
    assert "A DataLoader worker of another process died. The state after step" in out
