"""Start a student from its teacher's weights: fewer of its blocks, or a narrower model of the same architecture.

Tensors correspond by name. Where a list of blocks is shorter in the student, its blocks take the numbers of some of the
teacher's. With layers of the same width these are evenly spaced from the first to the last: block i of n has the
weights of block round(i * (N - 1) / (n - 1)) of N, which is DistilBERT's choice (0, 2, 4, 7, 9, 11 of 12; Sanh et al.,
arXiv 1910.01108). A narrower student has the first n blocks, and of each tensor evenly spaced elements in every
dimension: weight selection (Xu et al., ICLR 2024, arXiv 2311.18823).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel

from ..errors import InputError
from .class_matching import match_labels, matching_rows
from .heads import class_names, head_parameters

logger = logging.getLogger(__name__)

Tree = dict[str, Any]  # the parts of a module by name; each is a Tree or a Leaf
Choose = Callable[[int, int], list[int]]  # (n, N): the numbers of the teacher's N blocks for the student's n


class Leaf(NamedTuple):
    """A tensor of a model."""

    name: str
    shape: torch.Size


def start_from_teacher(
    student: PreTrainedModel, teacher: PreTrainedModel, label_map: Mapping[str, str] | None = None
) -> None:
    """Give a student the weights of its teacher, from which it has fewer blocks or narrower layers; in place.

    Everything that is not the head must have a counterpart in the teacher. Of the head, the rows of the classes that
    match by name, or by `label_map`, are copied; the others stay as they are. A warning says what was copied.

    Args:
        student: its configuration has its classes already.
        teacher: of the same architecture; unchanged.
        label_map: {student's class: teacher's class}, as `match_labels` takes it.

    Raises:
        InputError: the architectures do not correspond: other modules, another patch size, a student that is deeper or
            wider than the teacher, or blocks that are not alike.

    Examples:
        >>> from hf_gdkd.models import load_model, start_from_teacher
        >>> teacher = load_model("cifar/resnet32", label_names=["cat", "dog"], init="random")
        >>> student = load_model("cifar/resnet20", label_names=["dog", "cat"], init="random")
        >>> start_from_teacher(student, teacher)
        >>> bool((student.classifier.bias == teacher.classifier.bias[[1, 0]]).all())
        True
    """
    kinds = [_architecture(model) for model in (student, teacher)]
    if kinds[0] != kinds[1]:
        raise _refusal(f"the student is a {kinds[0]} and the teacher a {kinds[1]}")
    heads = [head_parameters(model.config, type(model)) for model in (student, teacher)]
    own, theirs = _learned(student), _learned(teacher)
    trees = [_tree(each, without=head) for each, head in zip((own, theirs), heads, strict=True)]
    head = set.intersection(*heads)
    found = _Correspondence(*trees, evenly_spaced)
    narrower = any(own[name].shape != theirs[other].shape for name, other in found.pairs.items())
    if narrower:
        found = _Correspondence(*trees, lambda n, of: list(range(n)))
    chosen = {name: _select(name, own[name], theirs[other], student) for name, other in found.pairs.items()}
    rows = _matching(class_names(teacher), class_names(student), label_map) if head else {}
    for name in head if rows else ():
        ours = own[name].clone()
        ours[list(rows)] = _select(name, ours[list(rows)], theirs[name][list(rows.values())], student)
        chosen[name] = ours
    with torch.no_grad():
        for name, tensor in chosen.items():
            own[name].copy_(tensor)
    blocks = "".join(f", blocks {_list(each)} of {of} of {at}" for at, (each, of) in found.blocks.items())
    width = ", evenly spaced elements of every tensor" if narrower else ""
    message = "student: starts from the teacher's weights%s%s, with %d of %d classes of its head."
    logger.warning(message, blocks, width, len(rows), len(class_names(student)))


def evenly_spaced(n: int, of: int) -> list[int]:
    """n numbers from 0 to of - 1, the first and the last included: 0, 2, 4, 7, 9, 11 for 6 of 12."""
    return [0] if n == 1 else [int(i * (of - 1) / (n - 1) + 0.5) for i in range(n)]


class _Correspondence:
    """Which tensor of the teacher belongs to which of the student's, both as trees of modules.

    Attributes:
        pairs: the student's tensors by name, each with the name of the teacher's.
        blocks: where the student has fewer blocks, the numbers of the teacher's that it takes, and how many there are.
    """

    def __init__(self, student: Tree, teacher: Tree, choose: Choose) -> None:
        self.choose, self.pairs, self.blocks = choose, {}, {}
        self._match(student, teacher, "")

    def _match(self, student: Tree, teacher: Tree, at: str) -> None:
        partners = {key: key for key in student}
        if len(student) != len(teacher) and all(key.isdigit() for key in (*student, *teacher)):
            partners = self._blocks(student, teacher, at)
        elif only := sorted(student.keys() ^ teacher.keys()):
            has, lacks = ("student", "teacher") if only[0] in student else ("teacher", "student")
            raise _refusal(f"the {has} has {at}{only[0]} and the {lacks} has not")
        for key, part in student.items():
            other = teacher[partners[key]]
            if isinstance(part, Leaf) and isinstance(other, Leaf):
                self.pairs[part.name] = other.name
            elif isinstance(part, dict) and isinstance(other, dict):
                self._match(part, other, f"{at}{key}.")
            else:
                raise _refusal(f"{at}{key} is a tensor in one of them and a module in the other")

    def _blocks(self, student: Tree, teacher: Tree, at: str) -> dict[str, str]:
        """Which of the teacher's blocks each of the student's corresponds to, in a list of blocks."""
        ours, theirs = (sorted(each, key=int) for each in (student, teacher))
        place, n, of = at.rstrip("."), len(ours), len(theirs)
        if n > of:
            raise _refusal(f"{place} has {n} blocks in the student and {of} in the teacher")
        if len({_shapes(teacher[key]) for key in theirs[1:]}) > 1:  # the first may change the width or the resolution
            raise _refusal(f"{place} has {n} parts in the student and {of} in the teacher, which are not alike")
        numbers = self.choose(n, of)
        self.blocks[place] = numbers, of
        return {key: theirs[i] for key, i in zip(ours, numbers, strict=True)}


def _select(name: str, own: Tensor, theirs: Tensor, student: nn.Module) -> Tensor:
    """Evenly spaced elements of the teacher's tensor, in every dimension in which the student's is smaller.

    Layers have their widths in the first two dimensions, and other tensors, such as position embeddings, in the last.
    """
    layer = isinstance(student.get_submodule(name.rpartition(".")[0]), nn.Linear | _ConvNd)
    widths = range(2) if layer else (own.ndim - 1,)
    shapes = f"{name} is {tuple(own.shape)} in the student and {tuple(theirs.shape)} in the teacher"
    if own.ndim != theirs.ndim or any(a != b for i, (a, b) in _sides(own, theirs) if i not in widths):
        raise _refusal(f"{shapes}, which differs by more than width")
    for i, (size, whole) in _sides(own, theirs):
        if size > whole:
            raise _refusal(f"{shapes}: the student is wider")
        exact = torch.arange(size) * (whole // size) if whole % size == 0 else torch.linspace(0, whole - 1, size)
        theirs = theirs.index_select(i, exact.round().long())
    return theirs


def _sides(own: Tensor, theirs: Tensor) -> list[tuple[int, tuple[int, int]]]:
    return list(enumerate(zip(own.shape, theirs.shape, strict=True)))


def _matching(source: Sequence[str], target: Sequence[str], label_map: Mapping[str, str] | None) -> dict[int, int]:
    """{student's class: teacher's class}, by index."""
    return dict(enumerate(match_labels(source, target, label_map))) if label_map else matching_rows(source, target)


def _learned(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and running statistics; the indices that some models keep as buffers are not learned."""
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def _architecture(model: PreTrainedModel) -> str:
    return type(model.timm_model).__name__ if hasattr(model, "timm_model") else model.config.model_type


def _tree(tensors: Mapping[str, Tensor], without: set[str]) -> Tree:
    root: Tree = {}
    for name, tensor in tensors.items():
        if name in without:
            continue
        *parents, last = name.split(".")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = Leaf(name, tensor.shape)
    return root


def _shapes(part: Tree | Leaf) -> Any:
    """What is in a block, to compare it with others."""
    return part.shape if isinstance(part, Leaf) else frozenset((key, _shapes(each)) for key, each in part.items())


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _refusal(what: str) -> InputError:
    return InputError(
        f"the student cannot start from the teacher's weights: {what}; choose a student of the teacher's architecture "
        "with fewer blocks or narrower layers, or another --student_init."
    )
