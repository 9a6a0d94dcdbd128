"""Two processes with two workers each train on every image of a stream once a pass, and count the bad ones together."""

import json
from pathlib import Path

from launch import launch
from pictures import parquet

WORKER = Path(__file__).with_name("stream.py")


def test_every_image_once_a_pass(tmp_path):
    """Four shards of ten good images and two bad ones are two batches of five for each of the four workers."""
    bad = [i for i in range(48) if i % 12 < 2]
    parquet(tmp_path / "data", rows=48, shard=12, bad=(*bad, 48))
    launch(tmp_path, 2, WORKER)
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    passes = one["seen"][:4] + other["seen"][:4], one["seen"][4:] + other["seen"][4:]
    assert sorted(name for batch in passes[0] for name in batch) == sorted(set(range(48)) - set(bad))
    assert [len(batch) for batch in passes[1]] == [5] * 4
    assert one["bad"] == other["bad"] == len(bad) + 1 and one["eval"] == other["eval"] == 3
