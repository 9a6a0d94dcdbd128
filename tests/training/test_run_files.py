"""What a run reports of its speed."""

import pytest
from transformers import TrainerState

from hf_gdkd.training.run_files import ms_per_step, steps_done


def test_evaluations_are_no_part_of_a_step(tmp_path):
    """10 seconds for 20 steps, 4 of them evaluations; after a checkpoint only what came after it counts."""
    state = TrainerState(
        global_step=20,
        log_history=[{"step": 5, "eval_runtime": 1.0}, {"step": 10, "loss": 2.0}, {"step": 20, "eval_runtime": 3.0}],
    )
    assert ms_per_step(10.0, state) == pytest.approx(1000 * (10 - 4) / 20)
    TrainerState(global_step=8).save_to_json(str(tmp_path / "trainer_state.json"))
    assert ms_per_step(10.0, state, steps_done(str(tmp_path))) == pytest.approx(1000 * (10 - 3) / 12)
    TrainerState(global_step=20).save_to_json(str(tmp_path / "trainer_state.json"))
    assert ms_per_step(10.0, state, steps_done(str(tmp_path))) is None
