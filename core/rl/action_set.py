"""Q-networks that score the members of a set of actions, which changes from state to state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import stable_baselines3.dqn.policies as sb3
from gymnasium import spaces
from stable_baselines3.common.torch_layers import create_mlp
from torch import Tensor, nn

from core.errors import InputError
from core.rl.q_network import MultiInputDQNPolicy

KEYS = ("state", "candidates", "mask")


class ActionSetDueling(nn.Module):
    """Q(s, a) = V(s) + A(s, x_a) - mean_b A(s, x_b), the mean over the actions b that are allowed (Wang et al. 2016).

    V is a network on the state's features, A one on those and the action's own features x_a.

    Args:
        state: number of features of the state.
        action: number of features of an action.
        hidden: widths of the hidden layers of both.
        dropout: share of all features that is left out while learning.
    """

    def __init__(self, state: int, action: int, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.value = nn.Sequential(*create_mlp(state, 1, list(hidden)))
        # The first layer of A is the sum of one on the state, computed once, and one on the action.
        first, *rest = hidden
        self.of_state = nn.Linear(state, first)
        self.of_action = nn.Linear(action, first, bias=False)
        self.advantage = nn.Sequential(nn.ReLU(), *create_mlp(first, 1, rest))

    def forward(self, state: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        """``(n, S)``, ``(n, K, A)`` and bool ``(n, K)`` to ``(n, K)``; a number without meaning where not allowed."""
        state, actions = self.dropout(state), self.dropout(actions)
        hidden = self.of_state(state).unsqueeze(1) + self.of_action(actions)
        advantage = self.advantage(hidden).squeeze(2)
        allowed = mask.to(advantage.dtype)
        mean = (advantage * allowed).sum(1, keepdim=True) / allowed.sum(1, keepdim=True).clamp(min=1)
        q_values: Tensor = self.value(state) + advantage - mean
        return q_values


class ActionSetQNetwork(sb3.QNetwork):
    """``ActionSetDueling`` on observations with the keys ``state``, ``candidates`` and ``mask``."""

    def __init__(self, *args: Any, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        space = self.observation_space
        assert isinstance(space, spaces.Dict)
        state, action = space["state"].shape, space["candidates"].shape
        assert state is not None
        assert action is not None
        self.q_net = ActionSetDueling(state[0], action[1], list(self.net_arch), dropout)  # type: ignore[assignment]

    def forward(self, obs: Any) -> Tensor:
        """``(n, K)`` of a dict of ``(n, S)``, ``(n, K, A)`` and ``(n, K)``."""
        q_values: Tensor = self.q_net(obs["state"], obs["candidates"], obs["mask"].bool())
        return q_values


class ActionSetPolicy(MultiInputDQNPolicy):
    """A policy of ``DQN`` for actions that are members of a set, each with features of its own.

    The observation is a Dict of ``state`` ``(S,)``, ``candidates`` ``(K, A)`` and ``mask`` ``(K,)``; action k is the
    k-th candidate. ``net_arch`` are the widths of the hidden layers of both heads, ``dropout`` the share of the
    features that is left out while learning.

    Raises:
        InputError: another observation space, or no hidden layer.
    """

    def __init__(self, observation_space: spaces.Space[Any], *args: Any, dropout: float = 0.0, **kwargs: Any) -> None:
        if not isinstance(observation_space, spaces.Dict) or set(observation_space.spaces) != set(KEYS):
            raise InputError(f"observation_space: {observation_space}; allowed: a Dict of {', '.join(KEYS)}")
        kwargs.setdefault("net_arch", [100])
        if not kwargs["net_arch"]:
            raise InputError("policy_kwargs.net_arch: empty; allowed: at least one hidden layer")
        self.dropout = dropout  # before SB3's constructor, which builds the networks
        super().__init__(observation_space, *args, **kwargs)

    def make_q_net(self) -> sb3.QNetwork:
        """A new network."""
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        return ActionSetQNetwork(dropout=self.dropout, **net_args).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"dropout": self.dropout}
