"""What a run that resumes may not change, through every door."""

import pytest
from tiny_training import StopAt, distil

from hf_gdkd.errors import InputError
from hf_gdkd.training.same_run import check_same_run


@pytest.mark.parametrize(
    "name, value",
    [("loss", "kd"), ("teacher_revision", "b" * 40), ("dataset", "other"), ("k", 3), ("learning_rate", 0.5)],
)
def test_a_resumed_run_keeps_its_settings(name, value):
    recipe = {"loss": "gdkd", "teacher": "big", "teacher_revision": "a" * 40, "dataset": "digits"}
    check_same_run(recipe | {"num_train_epochs": 20, "dataloader_num_workers": 4}, recipe)
    with pytest.raises(InputError, match=f"this run began with {name} .*use --{name} as it was"):
        check_same_run(recipe | {name: value}, recipe)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A run that was stopped after a step of 12 samples."""
    folder = tmp_path_factory.mktemp("started")
    distil(folder, num_train_epochs=2, callbacks=[StopAt(1)])
    return folder


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"learning_rate": 0.1}, "learning_rate 0.3, and would go on with 0.1"),
        ({"weight_decay": 0.1}, "weight_decay 0.0, and would go on with 0.1"),
        ({"optim": "adamw_torch"}, 'optim "sgd", and would go on with "adamw_torch"'),
        ({"temperature": 3.0}, "temperature null, and would go on with 3.0"),
        ({"loss_options": {"k": 4}}, r'loss_options null, and would go on with \["k=4"\]'),
        ({"seed": 4}, "seed 3, and would go on with 4"),
        ({"per_device_train_batch_size": 6}, "12 samples an optimizer step, and would go on with 6"),
    ],
)
def test_from_python(started, changed, said):
    with pytest.raises(InputError, match=f"this run began with {said}"):
        distil(started, resume=True, num_train_epochs=2, **changed)


def test_what_may_change(tmp_path):
    """How long the run goes on, and how a step is split."""
    distil(tmp_path, num_train_epochs=2, callbacks=[StopAt(1)])
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "logging_steps": 2}
    assert distil(tmp_path, resume=True, num_train_epochs=3, **split).state.global_step == 9
