"""Every golden value (loss, parts, gradient), from the formulas as the authors of each loss published them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_gdkd.losses import build_loss

FILES = ("golden_losses.json", "golden_more.json")
CASES = [case for name in FILES for case in json.loads(Path(__file__).with_name(name).read_text())["cases"]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['loss']}-{case['seed']}")
def test_golden(case):
    rng = np.random.default_rng(case["seed"])
    shape = case["n"], case["c"]
    teacher = rng.standard_normal(shape) * case["scale"]
    student = 0.5 * teacher + rng.standard_normal(shape) * case["scale"]
    labels = torch.from_numpy(rng.integers(0, case["c"], size=case["n"]))
    student, teacher = torch.from_numpy(student).requires_grad_(), torch.from_numpy(teacher)

    loss = build_loss(case["loss"], **case["params"])
    value = loss(student, teacher, labels)
    value.backward()

    loose = case["loss"] == "dist" or ("standardize" in case["params"] and case["loss"] != "rld")
    near = {"rel": 1e-5 if loose else 1e-6, "abs": 1e-12}
    assert value.item() == pytest.approx(case["value"], **near)
    assert student.grad.abs().sum().item() == pytest.approx(case["grad_abs_sum"], **near)
    assert student.grad[0, : len(case["grad_first_row"])].tolist() == pytest.approx(case["grad_first_row"], **near)
    parts = {name: part.mean().item() for name, part in loss.parts(student, teacher, labels).items()}
    assert {name: parts[name] for name in case["parts"]} == pytest.approx(case["parts"], **near)
    if "label_ce" in case:
        rescaled, _ = loss.rescaled(student, teacher)
        assert F.cross_entropy(rescaled, labels).item() == pytest.approx(case["label_ce"], **near)
