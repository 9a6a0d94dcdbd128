"""What the benchmark of the data path compares."""

import pytest
import torch

from hf_gdkd.scripts import benchmark_data
from hf_gdkd.scripts.benchmark_data import jpegs, ours, timm_pipeline, torchvision_pipeline


def test_all_pipelines_do_the_same_work(monkeypatch):
    """Normalised pixels of the same photographs: batches of one shape, with about the same mean and spread."""
    monkeypatch.setattr(benchmark_data, "SIZE", 48)
    files = jpegs((500, 375), 1) * 32
    batches = [next(iter(make(files)())) for make in (torchvision_pipeline, timm_pipeline)]
    pixels = [batch[0] for batch in batches] + [next(iter(ours(files)()))["pixel_values"]]
    assert {(each.shape, each.dtype) for each in pixels} == {(torch.Size([64, 3, 48, 48]), torch.float32)}
    for each in pixels[1:]:
        assert each.mean().item() == pytest.approx(pixels[0].mean().item(), abs=0.2)
        assert each.std().item() == pytest.approx(pixels[0].std().item(), abs=0.2)
