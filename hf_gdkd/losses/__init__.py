"""The distillation losses, by class and by name."""

import difflib
import inspect
from typing import Any

from ..errors import InputError
from .base import DistillationLoss
from .decoupled import DKDLoss, GDKD3Loss, GDKDLoss
from .features import ATLoss, CRDLoss, FeatureLoss, Features, FitNetLoss, RKDLoss
from .kd import KDLoss
from .levels import DecoupledTerms, decoupled_kl
from .relational import DISTLoss, MLKDLoss
from .review import ReviewKDLoss

__all__ = [
    "FEATURE_LOSSES",
    "LOSSES",
    "ATLoss",
    "CRDLoss",
    "DISTLoss",
    "DKDLoss",
    "DecoupledTerms",
    "DistillationLoss",
    "FeatureLoss",
    "Features",
    "FitNetLoss",
    "GDKD3Loss",
    "GDKDLoss",
    "KDLoss",
    "MLKDLoss",
    "RKDLoss",
    "ReviewKDLoss",
    "build_loss",
    "decoupled_kl",
    "loss_options",
    "register_loss",
]

LOSSES: dict[str, type[DistillationLoss]] = {
    "kd": KDLoss,
    "dkd": DKDLoss,
    "gdkd": GDKDLoss,
    "gdkd3": GDKD3Loss,
    "dist": DISTLoss,
    "mlkd": MLKDLoss,
}
"""Name to class of the losses on logits; `register_loss` adds to it."""

FEATURE_LOSSES: dict[str, type[FeatureLoss]] = {
    "fitnet": FitNetLoss,
    "at": ATLoss,
    "rkd": RKDLoss,
    "crd": CRDLoss,
    "reviewkd": ReviewKDLoss,
}
"""Name to class of the losses on hidden features, for `build_loss` too."""


def register_loss(name: str, cls: type[DistillationLoss]) -> None:
    """Make a loss of your own known to `build_loss`; a name that is taken is an InputError."""
    if not (inspect.isclass(cls) and issubclass(cls, DistillationLoss)):
        raise InputError(f"{cls!r} cannot be registered as {name!r}: expected a subclass of DistillationLoss.")
    if (taken := (LOSSES | FEATURE_LOSSES).get(name, cls)) is not cls:
        raise InputError(f"the name {name!r} is taken by {taken.__name__}: choose another.")
    LOSSES[name] = cls


def loss_options(name: str) -> tuple[str, ...]:
    """The keyword options of a loss, without `reduction`; InputError for an unknown name."""
    parameters = inspect.signature(_loss_class(name)).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(p.name for p in parameters if p.kind in named and p.name != "reduction")


def build_loss(name: str, **options: Any) -> DistillationLoss:
    """The loss of that name; an option that is None is left at the loss's own default.

    Raises:
        InputError: an unknown name, an option that the loss does not take, or a value that it refuses.
    """
    cls, known = _loss_class(name), loss_options(name)
    options = {key: value for key, value in options.items() if value is not None}
    for key in options:
        if key not in (*known, "reduction"):
            raise InputError(f"the loss {name!r} takes no option {key!r}: it takes {', '.join(known)}.")
    return cls(**options)


def _loss_class(name: str) -> type[DistillationLoss]:
    losses = LOSSES | FEATURE_LOSSES
    if name not in losses:
        close = difflib.get_close_matches(str(name), losses, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"there is no loss {name!r}: {hint}expected one of {', '.join(losses)}.")
    return losses[name]
