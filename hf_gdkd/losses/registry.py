"""The losses by name, with their options and the weights that they are published with."""

import difflib
import inspect
import re
from typing import Any

from ..errors import InputError
from .base import DistillationLoss, positive
from .channelwise import CWDFeaturesLoss, CWDLoss
from .decoupled import DKDLoss, GDKD3Loss, GDKDLoss
from .features import ATLoss, CRDLoss, FeatureLoss, RKDLoss
from .fitnet import FitNetLoss
from .kd import KDLoss
from .luminet import LumiNetLoss
from .nkd import NKDLoss
from .relational import DISTLoss, MLKDLoss
from .review import ReviewKDLoss
from .rld import RLDLoss
from .spherical import SKDLoss
from .ttm import TTMLoss, WTTMLoss
from .vitkd import ViTKDLoss

LOSSES: dict[str, type[DistillationLoss]] = {
    "kd": KDLoss,
    "dkd": DKDLoss,
    "gdkd": GDKDLoss,
    "gdkd3": GDKD3Loss,
    "dist": DISTLoss,
    "mlkd": MLKDLoss,
    "nkd": NKDLoss,
    "ttm": TTMLoss,
    "wttm": WTTMLoss,
    "luminet": LumiNetLoss,
    "rld": RLDLoss,
    "skd": SKDLoss,
    "cwd": CWDLoss,
}
"""Name to class of the losses on logits; `register_loss` adds to it."""

FEATURE_LOSSES: dict[str, type[FeatureLoss]] = {
    "fitnet": FitNetLoss,
    "at": ATLoss,
    "rkd": RKDLoss,
    "crd": CRDLoss,
    "reviewkd": ReviewKDLoss,
    "cwd_features": CWDFeaturesLoss,
    "vitkd": ViTKDLoss,
}
"""Name to class of the losses on hidden features, for `build_loss` too."""

LOSS_WEIGHTS: dict[str, tuple[float, float]] = {
    "ce": (1.0, 0.0),
    "kd": (0.5, 0.5),
    "mlkd": (0.1, 0.9),
    "ttm": (1.0, 45.0),
    "wttm": (1.0, 4.0),
    "skd": (0.1, 0.9),
    "fitnet": (1.0, 100.0),
    "at": (1.0, 1000.0),
    "crd": (1.0, 0.8),
    "cwd": (1.0, 3.0),
    "cwd_features": (1.0, 50.0),
}
"""(ce_weight, kd_weight) where they are not (1, 1): of the paper's recipes for transformers on ImageNet, and of other
losses as published."""


def register_loss(name: str, cls: type[DistillationLoss]) -> None:
    """Make your own loss known to `build_loss`, and so to `--loss`; a name that is taken is an InputError.

    Example:
        >>> class MyLoss(KDLoss):
        ...     "See DistillationLoss for a loss from scratch."
        >>> register_loss("mine", MyLoss)
        >>> from hf_gdkd.losses import build_loss
        >>> build_loss("mine", temperature=4.0).temperature
        4.0
        >>> del LOSSES["mine"]
    """
    if not (inspect.isclass(cls) and issubclass(cls, DistillationLoss)):
        raise InputError(f"{cls!r} cannot be registered as {name!r}: expected a subclass of DistillationLoss.")
    if not re.fullmatch(r"[\w-]+", name):
        raise InputError(f"a loss cannot be called {name!r}: use letters, digits, _ and -, as + joins losses.")
    if name in ("auto", "ce"):
        raise InputError(f"the name {name!r} is taken by --loss {name}: choose another.")
    if (taken := (LOSSES | FEATURE_LOSSES).get(name, cls)) is not cls:
        raise InputError(f"the name {name!r} is taken by {taken.__name__}: choose another.")
    LOSSES[name] = cls


def loss_options(name: str) -> tuple[str, ...]:
    """The options of a loss, without what its input is like: `dim` and `reduction`; InputError for an unknown name.

    Examples:
        >>> loss_options("dist")
        ('temperature', 'beta', 'gamma', 'gradient_scaling')
    """
    return tuple(option for option in keywords(name) if option not in ("dim", "reduction"))


def build_single(name: str, **options: Any) -> DistillationLoss:
    """The loss of one name; errors as those of `build_loss`."""
    for key in options:
        if key not in keywords(name):
            known = ", ".join(loss_options(name))
            raise InputError(f"the loss {name!r} takes no option {key!r}: it takes {known}.")
    scaling = options.pop("gradient_scaling", None)
    try:
        loss = loss_class(name)(**options)
        if scaling is not None:
            loss.gradient_scaling = positive("gradient_scaling", scaling)
    except TypeError as error:  # an option of another type
        values = ", ".join(f"{key} {value!r}" for key, value in options.items())
        raise InputError(f"the loss {name!r} does not take {values}: {error}.") from error
    return loss


def keywords(name: str) -> tuple[str, ...]:
    """Every argument that the loss of that name takes by name; InputError for an unknown name."""
    cls = loss_class(name)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    own = tuple(p.name for p in inspect.signature(cls).parameters.values() if p.kind in named)
    return (*own, "gradient_scaling") if cls.scales_gradients else own


def loss_class(name: str) -> type[DistillationLoss]:
    """The class of the loss of that name; InputError for an unknown name."""
    losses = LOSSES | FEATURE_LOSSES
    if name not in losses:
        close = difflib.get_close_matches(str(name), losses, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"there is no loss {name!r}: {hint}expected one of {', '.join(losses)}.")
    return losses[name]
