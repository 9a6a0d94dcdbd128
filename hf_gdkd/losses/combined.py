"""Several losses as one, such as `gdkd+fitnet`: their sum, each with a weight and options of its own."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from .base import DistillationLoss
from .features import FeatureLoss, Features
from .registry import LOSS_WEIGHTS, build_single, keywords

Weight = float | str  # a number, "auto" or "auto:4"


class CombinedLoss(DistillationLoss):
    """Adds several losses up, each with a weight; `build_loss("gdkd+fitnet")` makes one.

    Losses on hidden features take part where `forward` and `parts` are passed `Features` of both models; call `build`
    with one example before the optimizer is made, and pass the optimizer this loss's `parameters()` too. The terms of
    `parts` have the name of their loss before their own: `gdkd/high`.

    Args:
        members: the losses by name.
        weights: the weight of each: a number, or "auto", which `GDKDTrainer` finds.

    Example:
        >>> import torch
        >>> loss = build_loss("gdkd+dist", **{"gdkd.temperature": 4.0, "dist.weight": 0.5})
        >>> student, teacher = torch.randn(2, 8, 10)
        >>> loss(student, teacher).shape, list(loss.parts(student, teacher))[-2:]
        (torch.Size([]), ['dist/inter', 'dist/intra'])
    """

    def __init__(self, *, members: Mapping[str, DistillationLoss], weights: Mapping[str, Weight]) -> None:
        super().__init__()
        self._members = nn.ModuleDict(members)
        self._weights = {name: checked_weight(f"{name}.weight", weights[name]) for name in members}

    @property
    def members(self) -> dict[str, DistillationLoss]:
        return dict(self._members.items())

    @property
    def member_weights(self) -> dict[str, Weight]:
        return dict(self._weights)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of every term, by name.

        Raises:
            InputError: an automatic weight, which is not known here.
        """
        found = {}
        for name, member in self.members.items():
            if is_auto(self._weights[name]):
                raise InputError(f"{name}.weight is auto, which only GDKDTrainer finds: set a number.")
            found |= {f"{name}/{part}": self._weights[name] * w for part, w in member.weights.items()}
        return found

    @property
    def per_batch(self) -> bool:
        return all(member.per_batch for member in self.members.values())

    @property
    def couples_samples(self) -> bool:
        return any(member.couples_samples for member in self.members.values())

    @property
    def needs_labels(self) -> bool:
        return any(member.needs_labels for member in self.members.values())

    @property
    def takes_soft_labels(self) -> bool:
        return all(member.takes_soft_labels for member in self.members.values())

    def extra_repr(self) -> str:
        return ", ".join(f"{name}.weight={weight!r}" for name, weight in self._weights.items())

    def check_num_classes(self, num_classes: int) -> None:
        for member in self.members.values():
            member.check_num_classes(num_classes)

    def build(self, student: Features, teacher: Features) -> None:
        """Make the projections of the losses on features; see `FeatureLoss.build`."""
        for member in self.members.values():
            if isinstance(member, FeatureLoss):
                member.build(student, teacher)

    def parts(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        student_features: Features | None = None,
        teacher_features: Features | None = None,
    ) -> dict[str, Tensor]:
        """The unweighted terms of every loss by name; those on features need the features of both models.

        Raises:
            InputError: as the losses' own, or features that are missing.
        """
        inputs = self._inputs(student_logits, teacher_logits, student_features, teacher_features)
        return {
            f"{name}/{part}": value
            for name, member in self.members.items()
            for part, value in member.parts(*inputs[name], labels).items()
        }

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        student_features: Features | None = None,
        teacher_features: Features | None = None,
    ) -> Tensor:
        """The weighted sum of the losses, each reduced as it is alone; arguments and errors are those of `parts`."""
        self.weights  # noqa: B018 -- refuses automatic weights
        inputs = self._inputs(student_logits, teacher_logits, student_features, teacher_features)
        return sum(self._weights[name] * member(*inputs[name], labels) for name, member in self.members.items())

    def _inputs(self, *inputs: Any) -> dict[str, tuple]:
        """What each loss compares: the logits or the features of student and teacher."""
        logits, features = inputs[:2], inputs[2:]
        listening = [name for name, member in self.members.items() if isinstance(member, FeatureLoss)]
        if listening and None in features:
            raise InputError(f"{listening[0]} compares features: pass student_features and teacher_features too.")
        return {name: features if name in listening else logits for name in self.members}


def build_loss(name: str | Sequence[Mapping[str, Any] | str], **options: Any) -> DistillationLoss:
    """Make the loss of that name, or several added up; an option that is None is left at the loss's own default.

    Every loss takes `reduction`, and those on logits take `dim`, the dimension of the classes, and (but for `cwd`)
    `gradient_scaling`: see `gradient_scaling.scaled_gradient`. Of several losses each takes the options that it knows,
    `gdkd.k` sets one of gdkd alone, and `gdkd.weight` is its weight: a number, or "auto" in a `GDKDTrainer`. Unset, it
    is what the loss is published with beside a cross-entropy of weight 1.

    Args:
        name: of a loss; several joined by +; or a list of mappings with their names, weights and options.
        **options: of the loss or the losses.

    Raises:
        InputError: an unknown name, an option that the loss does not take, or a value that it refuses.

    Examples:
        >>> import torch
        >>> loss = build_loss("gdkd", k=3, temperature=2.0, dim=1)  # logits (N, C, H, W)
        >>> loss(torch.zeros(2, 19, 4, 4), torch.zeros(2, 19, 4, 4))
        tensor(0.)
        >>> build_loss("gdkd+dist", temperature=4.0, **{"gdkd.weight": 2.0}).member_weights
        {'gdkd': 2.0, 'dist': 1.0}
        >>> build_loss([{"name": "kd", "weight": 3}, {"name": "dist", "gamma": 2}]).member_weights
        {'kd': 3, 'dist': 1.0}
    """
    name, given = name_and_options(name)
    options = {key: value for key, value in (given | options).items() if value is not None}
    names = name.split("+")
    if len(names) == 1 and f"{name}.weight" not in options:
        return build_single(name, **{key.removeprefix(f"{name}."): value for key, value in options.items()})
    members, weights = {}, {}
    for each, own in options_by_member(names, options).items():
        weights[each] = own.pop("weight", published_weight(each))
        if is_auto(weights[each]) and "normalize" in keywords(each):
            own.setdefault("normalize", True)  # so that one weight means the same everywhere
        members[each] = build_single(each, **own)
    return CombinedLoss(members=members, weights=weights)


def name_and_options(loss: str | Sequence[Mapping[str, Any] | str]) -> tuple[str, dict[str, Any]]:
    """A list of losses as their names, joined by +, and their options.

    Raises:
        InputError: an element that is neither a name nor a mapping with one.

    Examples:
        >>> name_and_options([{"name": "gdkd", "k": 5}, {"name": "fitnet", "weight": 30}])
        ('gdkd+fitnet', {'gdkd.k': 5, 'fitnet.weight': 30})
    """
    if isinstance(loss, str):
        return loss, {}
    names, options = [], {}
    for each in loss if isinstance(loss, Sequence) else [loss]:
        each = {"name": each} if isinstance(each, str) else each
        if not (isinstance(each, Mapping) and isinstance(each.get("name"), str)):
            raise InputError(f"{each!r} is no part of a loss: write its name, or {{name: gdkd, weight: 2, k: 5}}.")
        names.append(each["name"])
        options |= {f"{each['name']}.{key}": value for key, value in each.items() if key != "name"}
    return "+".join(names), options


def options_by_member(names: Sequence[str], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of every loss, its weight included: those set for all that take them, and those of its own.

    Raises:
        InputError: an option that none takes, an unknown loss, or one that is named twice.
    """
    known = {name: ("weight", *keywords(name)) for name in names}
    if twice := [name for name in known if names.count(name) > 1]:
        raise InputError(f"the loss {'+'.join(names)!r} has {twice[0]} twice: name it once, with a larger weight.")
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in sorted(options.items(), key=lambda item: "." in item[0]):  # what is set for one comes last
        owner, _, option = key.rpartition(".")
        if owner and owner not in known:
            raise InputError(f"{key} is for no part of the loss {'+'.join(names)!r}: its parts are {', '.join(names)}.")
        takers = [owner] if owner else [name for name in names if option in known[name]]
        if not takers or option not in known[takers[0]]:
            who = f"the loss {owner or '+'.join(names)!r}"
            every = known[owner] if owner else dict.fromkeys(each for name in names for each in known[name])
            listed = ", ".join(each for each in every if each not in ("dim", "reduction"))
            raise InputError(f"{who} takes no option {option!r}: it takes {listed}.")
        for taker in takers:
            found[taker][option] = value
    return found


def published_weight(name: str) -> float:
    """What a loss is published with, beside a cross-entropy of weight 1."""
    ce_weight, kd_weight = LOSS_WEIGHTS.get(name, (1.0, 1.0))
    return kd_weight / ce_weight


def is_auto(weight: Weight) -> bool:
    """Whether a weight is found in training."""
    return isinstance(weight, str) and weight.partition(":")[0] == "auto"


def checked_weight(name: str, weight: Any) -> Weight:
    """A number of at least 0, also where it is written as text, or "auto", or "auto:" and a number above 0.

    Raises:
        InputError: anything else.
    """
    number = (weight.removeprefix("auto:") if weight != "auto" else 1) if isinstance(weight, str) else weight
    try:
        value = float(number)
        fits = math.isfinite(value) and value >= 0 and not (is_auto(weight) and value == 0)
    except (TypeError, ValueError):
        fits = False
    if not fits or isinstance(weight, bool):
        raise InputError(f"{name} is {weight}: use a finite number that is 0 or more, auto, or such as auto:4.")
    return weight if is_auto(weight) or not isinstance(weight, str) else value
