"""A loss that is not finite ends the run before it reaches the weights, and the state before the step is saved."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import InOrder, Normed, NormedTeacher, Record, distil, make, make_data

from hf_gdkd.errors import TrainingError


class Spoiled(NormedTeacher):
    """Its logits are NaN for the images whose first pixel says so."""

    def forward(self, pixel_values):
        logits = super().forward(pixel_values.nan_to_num(0.0))
        return torch.where(pixel_values[:, 0, 0, 0, None] == 99, torch.nan, logits)


def spoiled_data(pixel, value):
    data = [row | {"sample_id": 100 + i} for i, row in enumerate(make_data())]
    data[20] = data[20] | {"pixel_values": data[20]["pixel_values"].clone()}  # the second step: rows 12 to 23
    data[20]["pixel_values"][pixel] = value
    return data


@pytest.mark.parametrize("split", [{}, {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}])
@pytest.mark.parametrize(
    "pixel, value, parts", [((0, 0, 0), 99.0, "kd, high, low_top, low_other"), (..., torch.inf, "ce, kd, high")]
)
def test_the_run_ends_with_the_state_before_the_step(tmp_path, split, pixel, value, parts):
    record = Record()
    data = spoiled_data(pixel, value)
    with pytest.raises(TrainingError, match=f"at step 2 the loss is not finite in {parts}.* rows 112, 113, .* 123: .*"):
        distil(tmp_path, make(Normed), teacher=make(Spoiled, 1), data=data, callbacks=[record], **split)
    saved = load_file(tmp_path / "checkpoint-1/model.safetensors")
    assert len(record.steps) == 1
    names = [name for name in saved if name != "norm.num_batches_tracked"]
    torch.testing.assert_close({n: saved[n] for n in names}, {n: record.steps[0][n] for n in names}, rtol=0, atol=0)
    assert all(t.isfinite().all() for t in saved.values())


def test_the_state_can_be_gone_on_from(tmp_path):
    """With the image mended, the resumed run is the run that was never spoiled."""
    with pytest.raises(TrainingError, match="checkpoint-1"):
        distil(tmp_path / "a", make(Normed), teacher=make(Spoiled, 1), data=spoiled_data((0, 0, 0), 99.0))
    options = {"teacher": make(Spoiled, 1), "data": make_data()}
    resumed = distil(tmp_path / "b", make(Normed, 8), resume=str(tmp_path / "a/checkpoint-1"), **options)
    whole = distil(tmp_path / "c", make(Normed), **options)
    torch.testing.assert_close(dict(resumed.model.state_dict()), dict(whole.model.state_dict()), rtol=0, atol=0)


def test_without_row_numbers_the_step_and_parts_are_named(tmp_path):
    data = [{key: row[key] for key in ("pixel_values", "labels")} for row in spoiled_data(..., torch.inf)]
    with pytest.raises(TrainingError, match="at step 2 the loss is not finite in ce: look at these images"):
        distil(tmp_path, loss="ce", data=data, trainer=InOrder)
