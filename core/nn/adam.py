"""Adam on the parameters of many models at once, in a loop that shows its progress and resumes after a kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from core.checkpoint import Checkpoint
from core.rl.checkpoint import load_optimizer, optimizer_tensors

STEP = "step"
"""Name of the number of steps done in a checkpoint."""
PARAMETER = "parameter."
"""Begins the name of a parameter in a checkpoint."""
BUFFER = "buffer."
"""Begins the name of a buffer in a checkpoint."""


def minimise(
    parameters: Mapping[str, Tensor],
    loss: Callable[[int], Tensor],
    steps: int,
    *,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    buffers: Mapping[str, Tensor] | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> None:
    """Take Adam steps on ``parameters`` in place (Kingma and Ba 2015; beta .9, .999, epsilon 1e-8).

    Adam works element by element: if ``loss`` is a sum over independent models whose parameters are stacked along the
    first dimension, each is trained as it would be alone, and one that is no longer finite spoils no other.

    Args:
        parameters: by name; leaves that require a gradient.
        loss: of a step number from 0 on, a scalar tensor; everything random in it must follow from the number, so
            that a resumed loop repeats nothing and skips nothing.
        steps: in all.
        learning_rate: of Adam.
        weight_decay: times each parameter is added to its gradient (a squared penalty, not AdamW's decay).
        buffers: tensors that ``loss`` changes in place (running statistics, target networks); kept in the checkpoint.
        checkpoint: from which an interrupted loop goes on, bit for bit, and which it keeps up to date.
        progress: told the share done and a message.
    """
    optimizer = torch.optim.Adam(list(parameters.values()), lr=learning_rate, weight_decay=weight_decay, fused=True)
    held = {f"{PARAMETER}{name}": x for name, x in parameters.items()}
    held |= {f"{BUFFER}{name}": x for name, x in (buffers or {}).items()}
    done = 0
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        done = int(saved.pop(STEP))
        with torch.no_grad():
            for name, tensor in held.items():
                tensor.copy_(saved.pop(name))
        load_optimizer(optimizer, saved)
    for step in range(done, steps):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
        if checkpoint is not None and checkpoint.due:
            checkpoint.save({STEP: torch.tensor(step + 1), **held, **optimizer_tensors(optimizer)})
        if progress is not None:
            progress((step + 1) / steps, f"step {step + 1} of {steps}")
