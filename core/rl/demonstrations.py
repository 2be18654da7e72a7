"""Deep Q-learning that learns from a demonstrator too (Hester et al. 2018, DQfD), by a margin or a cloned policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args

import torch
from gymnasium import spaces
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from torch import Tensor
from torch.nn import functional

from core.errors import InputError
from core.rl.dqn import CHECK_EVERY, DQN
from core.rl.replay import ReplayBatch
from core.simulation import tree
from core.simulation.spaces import torch_dtype

Regulariser = Literal["margin", "kl"]
_HELD, _CLONE = "demonstrations.", "clone."
_NEVER = -1e9
"""Logit of an action that is not allowed: its probability is 0, and no infinity reaches a gradient."""


@dataclass(frozen=True)
class Demonstrations:
    """N transitions of a demonstrator, as the environment shows them to the learner.

    Attributes:
        observations: ``(N, ...)``, or a dict of them.
        actions: ``(N,)`` int64.
        rewards: ``(N,)``.
        next_observations: ``(N, ...)``.
        dones: ``(N,)`` bool, whether the world ended the episode.
        masks: ``(N, actions)`` bool, allowed at ``observations``; None allows everything.
        next_masks: the same at ``next_observations``.
        discounts: ``(N,)`` of what follows, for transitions of several steps; None stands for the learner's gamma.
    """

    observations: Any
    actions: Tensor
    rewards: Tensor
    next_observations: Any
    dones: Tensor
    masks: Tensor | None = None
    next_masks: Tensor | None = None
    discounts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class MixedBatch(ReplayBatch):
    """A batch whose last rows are demonstrations.

    Attributes:
        demonstrated: the number n of them.
        masks: ``(n, actions)`` bool, allowed at their observations; None allows everything.
    """

    demonstrated: int = 0
    masks: Tensor | None = None


def margin_loss(q_values: Tensor, actions: Tensor, masks: Tensor | None, margin: float) -> Tensor:
    """``()`` mean of max_a [Q(s, a) + margin 1(a != a_E)] - Q(s, a_E) over the allowed a (Hester et al. 2018, eq. 1).

    Args:
        q_values: ``(n, actions)``.
        actions: ``(n, 1)`` int64, the demonstrator's a_E.
        masks: ``(n, actions)`` bool; None allows everything.
        margin: at least 0.
    """
    own = q_values.gather(1, actions)
    raised = (q_values + margin).scatter(1, actions, own)
    if masks is not None:
        raised = raised.masked_fill(~masks, -math.inf)
    return (raised.amax(1, keepdim=True) - own).mean()


def policy_divergence(logits: Tensor, other: Tensor, masks: Tensor | None) -> Tensor:
    """``()`` mean KL(softmax(logits) || softmax(other)) over the allowed actions; ``(n, actions)`` each."""
    log_p, log_q = _log_softmax(logits, masks), _log_softmax(other, masks)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()


class DemonstrationDQN(DQN):
    """``DQN`` that learns from a demonstrator's transitions as well, which are kept beside the memory and never leave.

    ``demonstration_share`` of every batch is drawn from them, uniformly, with weight 1; they are learnt from as all
    others, and on them the loss gains ``imitation_weight`` times

    - ``margin``: ``margin_loss``, by which the demonstrated action is to be the best by ``margin``;
    - ``kl``: KL(pi_Q || pi_BC) (``policy_divergence``), pi_Q = softmax(Q / ``temperature``) and pi_BC a network of the
      same form that cross-entropy has fitted to the demonstrated actions.

    Before training, ``demonstrate`` hands over the transitions and ``pretrain`` learns from them alone. Without
    demonstrations it is ``DQN``. ``save_state`` keeps demonstrations and clone, so that ``restore_state`` needs neither
    call; ``save`` writes the Q-network alone.

    Args:
        *args: of ``DQN``.
        demonstration_share: of a batch, rounded to rows, of which at least one is the environment's.
        regulariser: see above.
        imitation_weight: a number, or a schedule as SB3's learning rates; None is 1 for the margin, and for kl falls
            from 1 to 0.1 over the training.
        margin: in the units of Q.
        temperature: likewise.
        **kwargs: of ``DQN``.

    Raises:
        InputError: a number out of its range, or another regulariser.
    """

    saved_arguments: ClassVar[tuple[str, ...]] = (
        *DQN.saved_arguments,
        *("demonstration_share", "regulariser", "imitation_weight", "margin", "temperature"),
    )

    def __init__(
        self,
        *args: Any,
        demonstration_share: float = 0.25,
        regulariser: Regulariser = "margin",
        imitation_weight: Any = None,
        margin: float = 0.1,
        temperature: float = 0.1,
        **kwargs: Any,
    ) -> None:
        if not 0 <= demonstration_share < 1:
            raise InputError(f"demonstration_share: {demonstration_share}; allowed: at least 0, below 1")
        if regulariser not in get_args(Regulariser):
            raise InputError(f"regulariser: {regulariser!r}; allowed: {', '.join(get_args(Regulariser))}")
        if not 0 <= margin < math.inf:
            raise InputError(f"margin: {margin}; allowed: at least 0")
        if not 0 < temperature < math.inf:
            raise InputError(f"temperature: {temperature}; allowed: greater than 0")
        self.demonstration_share, self.regulariser = demonstration_share, regulariser
        self.imitation_weight, self.margin, self.temperature = imitation_weight, margin, temperature
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        weight = self.imitation_weight
        if weight is None:
            weight = 1.0 if self.regulariser == "margin" else LinearSchedule(1.0, 0.1, 1.0)
        self._imitation = FloatSchedule(weight)
        self.demonstrations: Demonstrations | None = None
        self._clone: torch.nn.Module | None = None

    # ---- before the training

    def demonstrate(self, transitions: Demonstrations) -> None:
        """Keep these transitions, and no others that were kept before.

        Raises:
            InputError: there are none; tensors of a shape that the model cannot use; an action out of range or not
                allowed; a reward that is not finite; or masks that are absent where the environment has them.
        """
        assert isinstance(self.action_space, spaces.Discrete)
        _check_rows(transitions, int(self.action_space.n), masked=getattr(self.replay_buffer, "masked", False))
        held = {f.name: getattr(transitions, f.name) for f in fields(transitions)}
        for name in ("observations", "next_observations"):
            held[name] = _observed(held[name], self.observation_space, len(transitions), f"demonstrations.{name}")
        kinds = {"actions": torch.int64, "rewards": torch.float32, "discounts": torch.float32}
        kinds |= {"dones": torch.bool, "masks": torch.bool, "next_masks": torch.bool}
        held |= {name: held[name].to(kind) for name, kind in kinds.items() if held[name] is not None}
        # In memory of its own: what the caller does with the tensors later does not reach them.
        self.demonstrations = tree.map_tensors(lambda x: x.detach().to(self.device, copy=True), Demonstrations(**held))
        self._clone = None

    def pretrain(self, updates: int) -> None:
        """So many updates on demonstrations alone, before any step in the environment; for kl first those of pi_BC.

        The target network moves as in training, an update standing for a step of all rows.

        Raises:
            InputError: fewer than one update, or nothing was demonstrated.
            TrainingDiverged: as in ``train``.
        """
        if updates < 1:
            raise InputError(f"updates: {updates}; allowed: at least 1")
        self._demonstrated()
        if self.regulariser == "kl":
            self._fit_clone(updates)
        self.policy.set_training_mode(True)
        if self._good is None:
            self._good = self._copied()
        interval = max(self.target_update_interval // self.n_envs, 1)
        for update in range(1, updates + 1):
            self._loss = self._update(self._drawn(self.batch_size))
            self._n_updates += 1
            self._unchecked += 1
            if self.target_update_interval and update % interval == 0:
                self._move_target()
            if self._unchecked >= CHECK_EVERY or update == updates:
                self._check()

    def _fit_clone(self, updates: int) -> None:
        """Pi_BC by maximum likelihood: Adam on the cross-entropy of the demonstrated actions."""
        policy: Any = self.policy
        self._clone = clone = policy.make_q_net()
        clone.set_training_mode(True)
        optimizer = torch.optim.Adam(clone.parameters(), lr=self.lr_schedule(1.0))
        for _ in range(updates):
            batch = self._drawn(self.batch_size)
            log_p = _log_softmax(clone(batch.observations), batch.masks)
            loss = functional.nll_loss(log_p, batch.actions.squeeze(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        clone.set_training_mode(False)

    # ---- an update

    def sample_batch(self, batch_size: int) -> ReplayBatch:
        """Rows of the memory, then ``demonstration_share`` of demonstrations."""
        n = min(round(self.demonstration_share * batch_size), batch_size - 1)
        if self.demonstrations is None or n < 1:
            return super().sample_batch(batch_size)
        if self.regulariser == "kl" and self._clone is None:
            raise InputError("regulariser: 'kl' before pretrain; allowed: pretrain(updates) first, which fits pi_BC")
        return _joined(super().sample_batch(batch_size - n), self._drawn(n), self.gamma)

    def critic_penalty(self, q_values: Tensor, batch: ReplayBatch) -> Tensor | float:
        """The regulariser on the rows that are demonstrations."""
        penalty = super().critic_penalty(q_values, batch)
        if not isinstance(batch, MixedBatch):
            return penalty
        rows = slice(len(q_values) - batch.demonstrated, None)
        q = q_values[rows]
        if self.regulariser == "margin":
            loss = margin_loss(q, batch.actions[rows], batch.masks, self.margin)
        else:
            assert self._clone is not None
            with torch.no_grad():
                cloned = self._clone(tree.take(batch.observations, rows))
            loss = policy_divergence(q / self.temperature, cloned, batch.masks)
        return penalty + self._imitation(self._current_progress_remaining) * loss

    def _demonstrated(self) -> Demonstrations:
        if self.demonstrations is None:
            raise InputError("demonstrations: none; call demonstrate first")
        return self.demonstrations

    def _drawn(self, n: int) -> MixedBatch:
        """``n`` demonstrations, with replacement."""
        held = self._demonstrated()
        drawn = tree.take(held, torch.randint(len(held), (n,), device=self.device))
        return MixedBatch(
            drawn.observations,
            drawn.actions.unsqueeze(1),
            drawn.next_observations,
            drawn.dones.unsqueeze(1).float(),
            drawn.rewards.unsqueeze(1),
            None if drawn.discounts is None else drawn.discounts.unsqueeze(1),
            drawn.next_masks,
            demonstrated=n,
            masks=drawn.masks,
        )

    # ---- files

    def memory_tensors(self) -> dict[str, Tensor]:
        """The replay memory, the demonstrations and pi_BC, for ``save_state``."""
        tensors = super().memory_tensors()
        if self.demonstrations is not None:
            tensors |= {f"{_HELD}{name}": x for name, x in tree.named_tensors(self.demonstrations)}
        if self._clone is not None:
            tensors |= {f"{_CLONE}{name}": x for name, x in self._clone.state_dict().items()}
        return tensors

    def load_memory_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of ``memory_tensors``."""
        super().load_memory_tensors(tensors)
        held = {name.removeprefix(_HELD): x.to(self.device) for name, x in tensors.items() if name.startswith(_HELD)}
        self.demonstrations = Demonstrations(**_nested(held)) if held else None
        weights = {name.removeprefix(_CLONE): x for name, x in tensors.items() if name.startswith(_CLONE)}
        self._clone = None
        if weights:
            policy: Any = self.policy
            self._clone = clone = policy.make_q_net()
            clone.load_state_dict(weights)
            clone.set_training_mode(False)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "demonstrations", "_clone", "_imitation"]


def _log_softmax(logits: Tensor, masks: Tensor | None) -> Tensor:
    return (logits if masks is None else logits.masked_fill(~masks, _NEVER)).log_softmax(1)


def _joined(first: ReplayBatch, last: MixedBatch, gamma: float) -> MixedBatch:
    """The rows of both, those of the demonstrations last."""

    def discounts(batch: ReplayBatch) -> Tensor:
        return torch.full_like(batch.rewards, gamma) if batch.discounts is None else batch.discounts

    alone = first.discounts is None and last.discounts is None
    weights = None if first.weights is None else torch.cat([first.weights, torch.ones_like(last.rewards)])
    next_masks = None
    if first.next_masks is not None:
        assert last.next_masks is not None, "demonstrate has seen to it"
        next_masks = torch.cat([first.next_masks, last.next_masks])
    return MixedBatch(
        tree.map_tensors(_cat, first.observations, last.observations),
        torch.cat([first.actions, last.actions]),
        tree.map_tensors(_cat, first.next_observations, last.next_observations),
        torch.cat([first.dones, last.dones]),
        torch.cat([first.rewards, last.rewards]),
        None if alone else torch.cat([discounts(first), discounts(last)]),
        next_masks,
        weights,
        first.positions,
        last.demonstrated,
        last.masks,
    )


def _cat(first: Tensor, last: Tensor) -> Tensor:
    return torch.cat([first, last])


def _check_rows(transitions: Demonstrations, choices: int, *, masked: bool) -> None:
    """Refuse what ``DemonstrationDQN.demonstrate`` says, observations aside."""
    n = len(transitions)
    if not n:
        raise InputError("demonstrations: none; needs at least one transition")
    shapes = {"actions": (n,), "rewards": (n,), "dones": (n,), "discounts": (n,)}
    for name, shape in {**shapes, "masks": (n, choices), "next_masks": (n, choices)}.items():
        value = getattr(transitions, name)
        if value is not None and value.shape != shape:
            raise InputError(f"demonstrations.{name}: {tuple(value.shape)}; allowed: {shape}")
    actions = transitions.actions
    wrong = ((actions < 0) | (actions >= choices)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise InputError(f"demonstrations.actions[{row}]: {int(actions[row])}; allowed: 0 to {choices - 1}")
    if not bool(torch.isfinite(transitions.rewards).all()):
        raise InputError("demonstrations.rewards: not finite; allowed: finite numbers")
    if transitions.masks is not None:
        refused = (~transitions.masks.bool().gather(1, actions.unsqueeze(1))).nonzero()
        if len(refused):
            raise InputError(f"demonstrations.actions[{int(refused[0, 0])}]: masked; allowed: what masks allow")
    if masked and (transitions.masks is None or transitions.next_masks is None):
        raise InputError("demonstrations.masks, next_masks: absent; needed, because the environment masks actions")


def _observed(value: Any, space: spaces.Space[Any], n: int, name: str) -> Any:
    """Observations of a space in the type in which the memory keeps them."""
    if isinstance(space, spaces.Dict):
        if not isinstance(value, dict) or set(value) != set(space.spaces):
            found = ", ".join(value) if isinstance(value, dict) else "one tensor"
            raise InputError(f"{name}: {found}; allowed: a dict of {', '.join(space.spaces)}")
        return {key: _observed(value[key], part, n, f"{name}.{key}") for key, part in space.items()}
    shape = (n, 1) if isinstance(space, spaces.Discrete) else (n, *(space.shape or (1,)))
    if not isinstance(value, Tensor):
        raise InputError(f"{name}: {type(value).__name__}; allowed: a tensor {shape}")
    if value.numel() != math.prod(shape) or len(value) != n:
        raise InputError(f"{name}: {tuple(value.shape)}; allowed: {shape}")
    return value.reshape(shape).to(torch_dtype(space))


def _nested(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What the names before the first dot hold: a tensor, or a dict of those whose names begin so."""
    found: dict[str, Any] = {}
    for name, value in tensors.items():
        first, _, rest = name.partition(".")
        if rest:
            found.setdefault(first, {})[rest] = value
        else:
            found[first] = value
    return found
