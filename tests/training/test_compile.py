"""`--torch_compile`: student, teacher and loss compiled give the eager run's losses, and no graph is made twice."""

import torch
from tiny_training import distil, make, make_data, rows, vit
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from hf_gdkd import GDKDTrainer
from hf_gdkd.losses.partition import top_k


class Graphs(TrainerCallback):
    """The graphs that were made up to each step."""

    def __init__(self):
        self.counts = []

    def on_step_end(self, *args, **kwargs):
        self.counts.append(counters["stats"]["unique_graphs"])


def test_compiled_equals_eager_without_recompilation(tmp_path):
    runs = {}
    for compiled in (False, True):
        torch._dynamo.reset()
        counters.clear()
        graphs = Graphs()
        trainer = distil(
            tmp_path / str(compiled), make(vit), teacher=make(vit, 1), data=make_data(60), trainer=GDKDTrainer,
            num_train_epochs=4, torch_compile=compiled, callbacks=[graphs], kd_warmup_epochs=2,
        )  # fmt: skip
        runs[compiled] = [row["loss"] for row in rows(trainer)]
        assert len(runs[compiled]) == 20
        if compiled:
            assert graphs.counts[0] >= 3, "student, teacher and loss"
            assert graphs.counts[1] == graphs.counts[-1]
    assert max(abs(a - b) for a, b in zip(runs[False], runs[True], strict=True)) <= 1e-4
    assert runs[True][0] != runs[True][-1]


def test_compiled_top_k_takes_the_largest_once_each():
    """Also among equal logits, and in rows that hold fewer finite logits than k."""
    logits = torch.randn(12, 701, generator=torch.Generator().manual_seed(0)).mul(3).round()
    logits[3:6, 3:] = -torch.inf
    (index,) = torch.compile(top_k, fullgraph=True)(logits, 5)
    expected, _ = logits.topk(5)
    torch.testing.assert_close(logits.gather(-1, index), expected, rtol=0, atol=0)
    assert all(len(row.unique()) == 5 for row in index)
