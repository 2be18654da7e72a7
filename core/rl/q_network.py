"""Q-networks of Stable-Baselines3 with dueling heads, batch normalisation and Xavier weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import stable_baselines3.dqn.policies as sb3
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN, create_mlp
from torch import Tensor, nn

from core.errors import InputError


class DuelingHead(nn.Module):
    """Q(s, a) = V(s) + A(s, a) - mean_b A(s, b) on shared features (Wang et al. 2016, eq. 9).

    Args:
        width: number of features.
        actions: number of actions.
        hidden: widths of the hidden layers of each of both heads.
        activation: between the layers.
    """

    def __init__(self, width: int, actions: int, hidden: list[int], activation: type[nn.Module]) -> None:
        super().__init__()
        self.value = nn.Sequential(*create_mlp(width, 1, hidden, activation))
        self.advantage = nn.Sequential(*create_mlp(width, actions, hidden, activation))

    def forward(self, features: Tensor) -> Tensor:
        """``(n, width)`` to ``(n, actions)``."""
        advantage = self.advantage(features)
        q_values: Tensor = self.value(features) + (advantage - advantage.mean(1, keepdim=True))
        return q_values


class QNetwork(sb3.QNetwork):
    """SB3's Q-network; the further arguments are those of ``DQNPolicy``."""

    def __init__(
        self,
        *args: Any,
        dueling: bool = False,
        head_arch: Sequence[int] = (),
        batch_norm: bool = False,
        xavier: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        actions, widths = int(self.action_space.n), list(self.net_arch)
        if dueling or batch_norm:
            between: list[type[nn.Module]] = [nn.BatchNorm1d] if batch_norm else []
            last = -1 if dueling else actions
            layers = create_mlp(self.features_dim, last, widths, self.activation_fn, post_linear_modules=between)
            if dueling:
                width = widths[-1] if widths else self.features_dim
                layers.append(DuelingHead(width, actions, list(head_arch), self.activation_fn))
            self.q_net = nn.Sequential(*layers)
        if xavier:
            for module in self.q_net.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_normal_(module.weight)
                    nn.init.zeros_(module.bias)


class DQNPolicy(sb3.DQNPolicy):
    """SB3's policy of a Q-network and its target, ``net_arch`` and ``activation_fn`` included.

    A network of another kind comes by ``make_q_net``, whose module maps observations to ``(n, actions)`` values; SB3's
    ``QNetwork`` is a good base of it.

    Args:
        *args: SB3's.
        dueling: end in two heads, for the value and for the advantages, instead of one layer.
        head_arch: widths of the hidden layers of each of these heads.
        batch_norm: normalise behind every hidden linear layer of ``net_arch``, before its activation.
        xavier: weights by Glorot's normal initialisation and zero biases, behind the features extractor.
        **kwargs: SB3's.

    Raises:
        InputError: ``head_arch`` without ``dueling``.
    """

    def __init__(
        self,
        *args: Any,
        dueling: bool = False,
        head_arch: Sequence[int] = (),
        batch_norm: bool = False,
        xavier: bool = False,
        **kwargs: Any,
    ) -> None:
        if head_arch and not dueling:
            raise InputError(f"policy_kwargs.head_arch: {list(head_arch)}; allowed with dueling=True only")
        # Before SB3's constructor, which builds the networks.
        self.network_options: dict[str, Any] = {
            "dueling": dueling,
            "head_arch": list(head_arch),
            "batch_norm": batch_norm,
            "xavier": xavier,
        }
        super().__init__(*args, **kwargs)

    def make_q_net(self) -> sb3.QNetwork:
        """A new network with a features extractor of its own."""
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        return QNetwork(**net_args, **self.network_options).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self.network_options


class CnnDQNPolicy(DQNPolicy):
    """The same on images."""

    def __init__(self, *args: Any, features_extractor_class: type[Any] = NatureCNN, **kwargs: Any) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


class MultiInputDQNPolicy(DQNPolicy):
    """The same on Dict observations."""

    def __init__(self, *args: Any, features_extractor_class: type[Any] = CombinedExtractor, **kwargs: Any) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)
