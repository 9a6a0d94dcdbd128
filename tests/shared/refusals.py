"""What every refusal is: one sentence."""

import pytest

from hf_gdkd.errors import InputError


def refusal(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and text.endswith("."), text
    assert all(word in text for word in words), text
