"""Hidden features of any image model, read by hooks on its own forward pass, for the losses on features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..losses import Features
from ..models.heads import backbone_name

MAX_STAGES = 4
MAX_PREFIX = 9  # tokens before those of the grid: class, distillation, registers (Sapiens2 has eight)


class FeatureHooks:
    """The stages of a model, from shallow to deep, and the features that enter its classifier head.

    The stages are the last modules before the resolution shrinks, or a dilation grows in its place, at most four; for a
    model of one resolution, such as a ViT, the blocks at 1/4, 1/2, 3/4 and the end of its depth. They are those of the
    backbone, where the model names one. Tokens (N, L, D) become maps (N, D, H, W) of the image's proportions, without
    those that come before their grid, and maps with channels last are turned. The head is the last linear layer, or
    convolution of 1 x 1 maps, that runs.

    Args:
        model: an image classifier or segmenter.
        run: runs it once, on two images.
        layers: names of modules, as in `named_modules`, whose outputs are the stages instead.
        taps: "stages", or "blocks": of a model of one resolution, the first two blocks and the normalization after the
            last one (where there is none, the last block) instead.
        name: what messages call the model.

    Raises:
        InputError: a module that does not exist, does not run, or gives no map.
    """

    def __init__(
        self,
        model: nn.Module,
        run: Callable[[], object],
        layers: Sequence[str] | None = None,
        *,
        taps: str = "stages",
        name: str = "model",
    ) -> None:
        self.model, self._seen, self._taps = model, {}, []
        self.apart = False  # whether `take` returns views, whose gradients are those of what is computed from them
        self._image = (1, 1)
        with self._watching_images():
            visits = self._trace(run)
        if layers is not None:
            _check_layers(layers, model, visits, name)
        self.layers = list(layers) if layers is not None else _stages(model, visits, taps)
        heads = [v for v in visits.values() if isinstance(v.module, nn.Linear) and v.ndim == 2]
        heads += [v for v in visits.values() if isinstance(v.module, nn.Conv2d) and v.grid == (1, 1)]
        self.head = max(heads, key=lambda v: v.left).module if heads else None

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """While this is open, each forward pass of the model leaves its features for `take`."""
        with ExitStack() as hooks:
            hooks.enter_context(self._watching_images())
            for name in self.layers:
                handle = self.model.get_submodule(name).register_forward_hook(partial(self._keep, name))
                hooks.callback(handle.remove)
            if self.head is not None:
                hooks.callback(self.head.register_forward_pre_hook(self._keep_pooled).remove)
            yield

    def _keep(self, name: str, module: nn.Module, args: tuple, output: object) -> None:
        tensor = _tensor(output)
        self._seen[name] = tensor, _as_map(tensor, self._image)

    def _keep_pooled(self, module: nn.Module, args: tuple) -> None:
        self._seen["pooled"] = args[0], args[0].flatten(1)

    def take(self) -> Features:
        """The features of the last forward pass, which are then let go."""
        seen, self._seen = self._seen, {}
        if self.apart:
            seen = {name: (tensor, features.view_as(features)) for name, (tensor, features) in seen.items()}
            taps = [seen[name] for name in (*self.layers, "pooled") if name in seen]
            self._taps = [tap for tap in taps if tap[0].requires_grad]  # not of frozen layers
        return Features([seen[name][1] for name in self.layers], seen["pooled"][1] if "pooled" in seen else None)

    def take_taps(self) -> list[tuple[Tensor, Tensor]]:
        """The outputs of modules, from shallow to deep, and what `take` returned of each; they are then let go."""
        taps, self._taps = self._taps, []
        return taps

    @contextmanager
    def _watching_images(self) -> Iterator[None]:
        """While this is open, the size of the images that the model is given is kept."""

        def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
            images = kwargs.get("pixel_values", next(iter(args), None))
            if isinstance(images, Tensor) and images.ndim == 4:
                self._image = tuple(images.shape[2:])

        hook = self.model.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def _trace(self, run: Callable[[], object]) -> dict[str, _Visit]:
        """How the modules run, by name; without those that run twice, or return something else than a tensor."""
        visits: dict[str, _Visit | None] = {}

        def leave(name: str, module: nn.Module, args: tuple, output: object) -> None:
            tensor, again = _tensor(output), name in visits
            usable = tensor is not None and not again
            grid = _grid(tensor, self._image)
            visits[name] = _Visit(module, len(visits), grid, tensor.ndim) if usable else None

        with ExitStack() as hooks, torch.no_grad():
            for name, module in self.model.named_modules():
                hooks.callback(module.register_forward_hook(partial(leave, name)).remove)
            run()
        return {name: visit for name, visit in visits.items() if visit is not None}


class _Visit(NamedTuple):
    """One run of a module: when it ended, and the (H, W) of its output where that is a map."""

    module: nn.Module
    left: int
    grid: tuple[int, int] | None
    ndim: int


def _stages(model: nn.Module, visits: dict[str, _Visit], taps: str = "stages") -> list[str]:
    """The names of the stages: children of the module of the backbone whose children have the most resolutions.

    Of equals, lists of modules come first, then those with more children, then the outermost. What holds less than a
    quarter of the backbone's modules is not a trunk, but a stem, a block or a head.
    """
    backbone = backbone_name(model)
    if backbone is not None:
        visits = {name: visit for name, visit in visits.items() if f"{name}.".startswith(f"{backbone}.")}
    best, stages, blocks = (0, False, 0), {}, []
    for name, module in model.named_modules():
        listed = isinstance(module, nn.ModuleList | nn.Sequential)
        prefix = f"{name}." if name else ""
        children = [prefix + child for child, _ in module.named_children()]
        children = [child for child in children if child in visits and visits[child].grid not in (None, (1, 1))]
        within = sum(other.startswith(prefix) for other in visits)
        if not children or within < len(visits) / 4:
            continue
        children.sort(key=lambda child: visits[child].left)
        last: dict[tuple[tuple[int, int], int], str] = {}
        for child in children:
            grid = visits[child].grid
            if not last or math.prod(grid) <= min(math.prod(other) for other, _ in last):
                last[grid, _dilation(visits[child].module)] = child
        score = (len(last), listed, len(children))
        if score > best:
            best, stages, blocks = score, last, children
    if len(stages) == 1 and taps == "blocks":
        end = visits[blocks[-1]]
        norms = (nn.LayerNorm, nn.RMSNorm)
        after = [name for name, v in visits.items() if v.left > end.left and v.grid == end.grid]
        after = [name for name in after if isinstance(visits[name].module, norms)]
        return list(dict.fromkeys([*blocks[:2], after[0] if after else blocks[-1]]))
    if len(stages) == 1:
        return list(dict.fromkeys(blocks[math.ceil(len(blocks) * part / MAX_STAGES) - 1] for part in range(1, 5)))
    return list(stages.values())[-MAX_STAGES:]


def _check_layers(layers: Sequence[str], model: nn.Module, visits: dict[str, _Visit], owner: str) -> None:
    modules = dict(model.named_modules())
    for layer in layers:
        if layer not in modules:
            close = get_close_matches(layer, modules, n=3) or _stages(model, visits)
            raise InputError(f"the {owner} has no module {layer!r}: choose one such as {', '.join(close)}.")
        if layer not in visits or visits[layer].grid is None:
            raise InputError(
                f"module {layer!r} of the {owner} does not return one map (N, C, H, W), or the tokens (N, L, D) of a "
                "square grid, in a forward pass: name a stage or a block of the model."
            )


def _tensor(value: object) -> Tensor | None:
    """A tensor, or the first in a tuple; what a model returns by names is none."""
    if isinstance(value, tuple | list):
        return next((item for item in value if isinstance(item, Tensor)), None)
    return value if isinstance(value, Tensor) else None


def _dilation(module: nn.Module) -> int:
    return max((max(each.dilation) for each in module.modules() if isinstance(each, nn.Conv2d)), default=1)


def _as_map(x: Tensor, image: tuple[int, int]) -> Tensor | None:
    """(N, C, H, W) from itself, from maps (N, H, W, C) or from tokens (N, L, D); None where it is neither.

    What H and W are is seen from the image's proportions.
    """
    if x.ndim == 4:
        last = _proportional(x.shape[1:3], image) and not _proportional(x.shape[2:], image)
        return x.permute(0, 3, 1, 2) if last else x
    if x.ndim == 3:
        for cells in (0, 1):  # the sides of an image may be no multiple of the patches'
            for prefix in range(min(MAX_PREFIX + 1, x.shape[1])):
                count = x.shape[1] - prefix
                height = max(1, round(math.sqrt(count * image[0] / image[1])))
                grid = height, count // height
                if min(grid) > 1 and math.prod(grid) == count and _proportional(grid, image, cells):
                    return x[:, prefix:].transpose(1, 2).unflatten(2, grid)
    return None


def _proportional(grid: Sequence[int], image: tuple[int, int], cells: int = 1) -> bool:
    """Whether a grid has the image's proportions, or lacks less than so many cells of them."""
    difference = abs(grid[0] * image[1] - grid[1] * image[0])
    return difference == 0 or difference < cells * max(image)


def _grid(x: Tensor | None, image: tuple[int, int]) -> tuple[int, int] | None:
    """(H, W) where a tensor of two images is a map."""
    grid = None if x is None or x.shape[:1] != (2,) else _as_map(x, image)
    return None if grid is None else tuple(grid.shape[2:])
