"""What a loss holds beside its input, by every allocation and release of one forward and backward."""

from functools import partial

import pytest
import torch

from hf_gdkd.losses import build_loss
from hf_gdkd.scripts.benchmark_losses import peak_mb, plain_kd


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("name", ["dkd", "gdkd3"])
@pytest.mark.parametrize("shape", [(256, 1000), (2, 19, 64, 64)], ids=str)
def test_peak_is_at_most_plain_kds_and_a_boolean_for_each_logit(shape, name, temperature):
    student, teacher = torch.randn(2, *shape)
    labels = torch.zeros(shape[0], *shape[2:], dtype=torch.long)
    loss = build_loss(name, temperature=temperature, dim=1)
    allowed = peak_mb(partial(plain_kd, temperature=temperature, dim=1), student, teacher, labels)
    assert peak_mb(loss, student, teacher, labels) <= allowed + student.numel() / 1e6
