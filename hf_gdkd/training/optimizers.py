"""The optimizers of timm, by name."""

from __future__ import annotations

from difflib import get_close_matches

from torch.optim import Optimizer

from ..errors import InputError


def timm_optimizer(name: str) -> type[Optimizer]:
    """The class of an optimizer of timm, such as "lamb".

    Raises:
        InputError: timm has none of that name, or one that needs second derivatives.
    """
    from timm.optim import get_optimizer_info, list_optimizers  # takes a second

    if name not in list_optimizers():
        close = ", ".join(get_close_matches(name, list_optimizers())) or "lamb, nadamw, lion, ..."
        raise InputError(f"timm_optimizer is {name!r}, which timm does not have: choose one such as {close}.")
    info = get_optimizer_info(name)
    if info.second_order:
        raise InputError(f"timm_optimizer {name} needs second derivatives, which are not computed: choose another.")
    return info.opt_class
