"""Operations on states and noises: frozen dataclasses (nested freely, also dicts) whose leaves are tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def map_tensors(function: Callable[..., Tensor], tree: T, *others: T) -> T:
    """Apply ``function`` to the corresponding tensors of one or several trees of the same structure.

    Leaves that are not tensors (None, numbers, strings) are taken from the first tree.
    """
    if isinstance(tree, Tensor):
        return function(tree, *others)  # type: ignore[return-value]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = [f.name for f in dataclasses.fields(tree)]
        return type(tree)(
            **{n: map_tensors(function, getattr(tree, n), *(getattr(o, n) for o in others)) for n in fields}
        )
    if isinstance(tree, dict):
        return {  # type: ignore[return-value]
            k: map_tensors(function, v, *(o[k] for o in others))  # type: ignore[index]
            for k, v in tree.items()
        }
    return tree


def named_tensors(tree: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the tree with its dotted path."""
    if isinstance(tree, Tensor):
        yield prefix, tree
        return
    children: Any = ()
    if dataclasses.is_dataclass(tree):
        children = ((f.name, getattr(tree, f.name)) for f in dataclasses.fields(tree))
    elif isinstance(tree, dict):
        children = tree.items()
    for name, child in children:
        yield from named_tensors(child, f"{prefix}.{name}" if prefix else str(name))


def with_tensors(tree: T, tensors: dict[str, Tensor], prefix: str = "") -> T:
    """The tree with its tensors replaced by those of the same dotted path (the inverse of ``named_tensors``).

    Raises:
        KeyError: a tensor of the tree is absent from ``tensors``.
    """
    if isinstance(tree, Tensor):
        return tensors[prefix]  # type: ignore[return-value]

    def child(name: Any, value: Any) -> Any:
        return with_tensors(value, tensors, f"{prefix}.{name}" if prefix else str(name))

    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return type(tree)(**{f.name: child(f.name, getattr(tree, f.name)) for f in dataclasses.fields(tree)})
    if isinstance(tree, dict):
        return {k: child(k, v) for k, v in tree.items()}  # type: ignore[return-value]
    return tree


def as_real(tensor: Tensor) -> Tensor:
    """Complex numbers as pairs of real ones, for files that hold no others; real ones as they are."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def like(tensor: Tensor, template: Tensor) -> Tensor:
    """The inverse of ``as_real`` for a tensor of the kind and memory layout of ``template``, in memory of its own."""
    copied = torch.empty_like(template)
    as_real(copied).copy_(tensor)
    return copied


def expand_mask(mask: Tensor, like: Tensor) -> Tensor:
    """A ``(B,)`` mask with trailing axes, so that it broadcasts against ``like`` of shape ``(B, ...)``."""
    return mask.reshape(mask.shape + (1,) * (like.dim() - mask.dim()))


def where(mask: Tensor, tree: T, other: T) -> T:
    """Copy b from ``tree`` where ``mask[b]``, else from ``other``; ``mask`` is ``(B,)`` bool."""
    return map_tensors(lambda a, b: torch.where(expand_mask(mask, a), a, b), tree, other)


def take(tree: T, index: Any) -> T:
    """The copies that ``index`` (slice, index tensor or mask) selects from the batch."""
    return map_tensors(lambda x: x[index], tree)


def repeat(tree: T, times: int) -> T:
    """The batch repeated as a whole: copy b of repetition g stands at ``g * B + b``."""
    return map_tensors(lambda x: x.repeat(times, *(1,) * (x.dim() - 1)), tree)


def total(tree: Any, *tensors: Tensor) -> Tensor:
    """``(B,)`` sum of all floating-point numbers of a copy, in the tree and in further ``(B, ...)`` tensors."""
    found: Tensor | None = None
    for x in (*(x for _, x in named_tensors(tree)), *tensors):
        if x.is_complex():
            x = torch.view_as_real(x)
        if x.is_floating_point():
            part = x if x.dim() == 1 else x.flatten(1).sum(1)
            found = part if found is None else found + part
    if found is None:
        raise ValueError("the tree holds no floating-point tensor")
    return found


def finite(tree: Any, *tensors: Tensor) -> Tensor:
    """``(B,)`` bool: which copies hold only finite numbers, in the tree and in further ``(B, ...)`` tensors.

    A copy counts as not finite when the sum of its numbers overflows: long before that no world is meaningful.
    """
    sums = total(tree, *tensors)
    return sums - sums == 0  # false for inf and nan, at half the cost of torch.isfinite
