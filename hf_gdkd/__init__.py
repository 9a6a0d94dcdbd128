"""Knowledge distillation for image models in the Hugging Face ecosystem.

`hf_gdkd.losses` needs torch alone; the names below import transformers when they are first used. Importing this
package makes the paper's CIFAR networks known to transformers' Auto classes, see `hf_gdkd.models.cifar`.
"""

from importlib import import_module
from typing import Any

from .models.cifar.registration import register

__version__ = "0.1.0"

_HOME = {
    "GDKDConfig": "training.config",
    "GDKDTrainer": "training.trainer",
    "Teacher": "training.teacher",
    "build_loss": "losses",
}
__all__ = ["GDKDConfig", "GDKDTrainer", "Teacher", "build_loss"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register()
