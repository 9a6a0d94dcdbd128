"""A handful of the models that `sweep.py` takes through all stages, and that it knows every classifier there is."""

import importlib.util
from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_gdkd.errors import InputError

SPEC = importlib.util.spec_from_file_location("sweep", Path(__file__).parent / "sweep.py")
sweep = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(sweep)


def test_every_classifier_of_transformers_is_swept():
    assert set(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES) - {"timm_wrapper"} == set(sweep.TRANSFORMERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["levit", "pvt", "deit", "swin", "timm/test_vit3", "timm/test_efficientnet"])
def test_models(name):
    sweep.check(name)


@pytest.mark.parametrize(
    "name, words", [("imagegpt", "input_ids instead of pixel_values"), ("siglip2", "arrays of shape")]
)
def test_models_that_are_refused(name, words):
    with pytest.raises(InputError, match=words):
        sweep.check(name)
