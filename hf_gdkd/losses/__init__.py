"""Compares a student with its teacher: the distillation losses, by class and by name."""

import difflib
import inspect
from typing import Any

from ..errors import InputError
from .base import DistillationLoss, positive
from .channelwise import CWDFeaturesLoss, CWDLoss
from .decoupled import DKDLoss, GDKD3Loss, GDKDLoss
from .features import ATLoss, CRDLoss, FeatureLoss, Features, FitNetLoss, RKDLoss
from .kd import KDLoss
from .levels import DecoupledTerms, decoupled_kl
from .luminet import LumiNetLoss
from .nkd import NKDLoss
from .relational import DISTLoss, MLKDLoss
from .review import ReviewKDLoss
from .rld import RLDLoss
from .spherical import SKDLoss
from .ttm import TTMLoss, WTTMLoss
from .vitkd import ViTKDLoss

__all__ = [
    "FEATURE_LOSSES",
    "LOSSES",
    "ATLoss",
    "CRDLoss",
    "CWDFeaturesLoss",
    "CWDLoss",
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
    "LumiNetLoss",
    "MLKDLoss",
    "NKDLoss",
    "RKDLoss",
    "RLDLoss",
    "ReviewKDLoss",
    "SKDLoss",
    "TTMLoss",
    "ViTKDLoss",
    "WTTMLoss",
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


def register_loss(name: str, cls: type[DistillationLoss]) -> None:
    """Make your own loss known to `build_loss`, and so to `--loss`; a name that is taken is an InputError.

    Example:
        >>> class MyLoss(KDLoss):
        ...     "See DistillationLoss for a loss from scratch."
        >>> register_loss("mine", MyLoss)
        >>> build_loss("mine", temperature=4.0).temperature
        4.0
        >>> del LOSSES["mine"]
    """
    if not (inspect.isclass(cls) and issubclass(cls, DistillationLoss)):
        raise InputError(f"{cls!r} cannot be registered as {name!r}: expected a subclass of DistillationLoss.")
    if (taken := (LOSSES | FEATURE_LOSSES).get(name, cls)) is not cls:
        raise InputError(f"the name {name!r} is taken by {taken.__name__}: choose another.")
    LOSSES[name] = cls


def loss_options(name: str) -> tuple[str, ...]:
    """The options of a loss, without what its input is like: `dim` and `reduction`; InputError for an unknown name.

    Examples:
        >>> loss_options("dist")
        ('temperature', 'beta', 'gamma', 'gradient_scaling')
    """
    return tuple(option for option in _keywords(name) if option not in ("dim", "reduction"))


def build_loss(name: str, **options: Any) -> DistillationLoss:
    """Make the loss of that name; an option that is None is left at the loss's own default.

    Every loss takes `reduction`, and those on logits take `dim`, the dimension of the classes, and (but for `cwd`)
    `gradient_scaling`: see `gradient_scaling.scaled_gradient`.

    Raises:
        InputError: an unknown name, an option that the loss does not take, or a value that it refuses.

    Examples:
        >>> import torch
        >>> loss = build_loss("gdkd", k=3, temperature=2.0, dim=1)  # logits (N, C, H, W)
        >>> loss(torch.zeros(2, 19, 4, 4), torch.zeros(2, 19, 4, 4))
        tensor(0.)
    """
    options = {key: value for key, value in options.items() if value is not None}
    for key in options:
        if key not in _keywords(name):
            known = ", ".join(loss_options(name))
            raise InputError(f"the loss {name!r} takes no option {key!r}: it takes {known}.")
    scaling = options.pop("gradient_scaling", None)
    loss = _loss_class(name)(**options)
    if scaling is not None:
        loss.gradient_scaling = positive("gradient_scaling", scaling)
    return loss


def _keywords(name: str) -> tuple[str, ...]:
    cls = _loss_class(name)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    own = tuple(p.name for p in inspect.signature(cls).parameters.values() if p.kind in named)
    return (*own, "gradient_scaling") if cls.scales_gradients else own


def _loss_class(name: str) -> type[DistillationLoss]:
    losses = LOSSES | FEATURE_LOSSES
    if name not in losses:
        close = difflib.get_close_matches(str(name), losses, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"there is no loss {name!r}: {hint}expected one of {', '.join(losses)}.")
    return losses[name]
