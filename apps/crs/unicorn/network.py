"""The network of UNICORN: graph convolution, Transformer and a dueling head over the action set (section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import stable_baselines3.dqn.policies as sb3
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor
from torch import Tensor, nn

from apps.crs.unicorn.graph import StateGraph, state_graph
from apps.crs.unicorn.history import check, restore
from apps.crs.unicorn.settings import UnicornSettings
from core.nn.graph import GraphConvolution
from core.rl.action_set import ActionSetDueling
from core.rl.q_network import DQNPolicy
from simulators.crs.conversation import Conversation


@dataclass(frozen=True)
class Scene:
    """What the network reads of B dialogues: their graph, and the action set.

    Attributes:
        graph: of the states.
        question: ``(B, K_p)`` int64, -1 for none.
        item: ``(B, K_v)`` int64, -1 for none.
        mask: ``(B, K_p + K_v)`` bool.
    """

    graph: StateGraph
    question: Tensor
    item: Tensor
    mask: Tensor


class UnicornNetwork(nn.Module):
    """Q(s, a) of the actions of A_t.

    The accepted attributes' outputs of the graph convolution go, in their order, through a Transformer layer; their
    mean f'(s) becomes the state f(s) = ReLU(W f'(s) + b). As positions have no codes, their order does not reach it. An
    action is the embedding of its attribute or item, that of a type the mean over its attributes.

    Args:
        world: of the dialogues; its embeddings are where those of the network begin.
        settings: see there.

    Attributes:
        table: ``(U + 1 + V + P, d)`` embeddings of users, of somebody unknown, of items and of attributes.

    Raises:
        InputError: rules whose candidates do not follow from the history.
    """

    def __init__(self, world: Conversation, settings: UnicornSettings) -> None:
        super().__init__()
        check(world)
        hidden, dim = settings.hidden, world.embeddings.dim
        self.world, self.settings = world, settings
        self.first_item = len(world.users)
        self.first_attribute = self.first_item + world.catalogue.n_items
        table = torch.cat([world.users, world.embeddings.item, world.embeddings.attribute])
        if not settings.pretrained:
            table = nn.functional.normalize(torch.randn(table.shape), dim=1).to(table)
        self.table = nn.Parameter(table.clone(), requires_grad=settings.train_embeddings or not settings.pretrained)
        paper = settings.compat == "paper"
        self.convolutions = nn.ModuleList(
            GraphConvolution(hidden if layer else dim, hidden, own=paper, rectified=paper)
            for layer in range(settings.depth if settings.graph else 0)
        )
        self.projection = None if settings.graph else nn.Linear(dim, hidden)
        self.transformer = None
        if settings.transformer:
            self.transformer = nn.TransformerEncoderLayer(
                hidden, settings.heads, settings.feedforward, settings.dropout, batch_first=True
            )
        self.of_state = nn.Linear(hidden, hidden)
        self.head = ActionSetDueling(hidden, dim, [hidden])

    # ---- what it reads

    @torch.no_grad()
    def scene(self, seen: Mapping[str, Tensor]) -> Scene:
        """What the network reads of the histories ``(B, ...)`` of ``HistoryFeatures`` with ``mask``."""
        settings = self.settings
        graph = state_graph(
            self.world,
            restore(self.world, seen),
            layers=len(self.convolutions),
            most_items=settings.graph_items,
            official=settings.compat == "official",
        )
        return Scene(graph, seen["question"].long(), seen["item"].long(), seen["mask"].bool())

    # ---- values

    def forward(self, seen: Mapping[str, Tensor] | Scene) -> Tensor:
        """``(B, K_p + K_v)`` values; without meaning where not allowed."""
        scene = seen if isinstance(seen, Scene) else self.scene(seen)
        values: Tensor = self.head(self.state(scene.graph), self.actions(scene), scene.mask)
        return values

    def state(self, graph: StateGraph) -> Tensor:
        """``(B, hidden)`` f(s)."""
        if self.projection is None:
            told = self.table
            for convolution, layer in zip(self.convolutions, graph.layers, strict=True):
                told = convolution(told, *layer)
        else:
            told = self.projection(nn.functional.embedding(graph.accepted, self.table))
        length = int(graph.place.max()) + 1 if len(graph.place) else 1
        sequence = told.new_zeros(graph.rows, length, told.shape[1])
        sequence = sequence.index_put((graph.dialogue, graph.place), told)
        real = torch.zeros(graph.rows, length, dtype=torch.bool, device=told.device)
        real[graph.dialogue, graph.place] = True
        if self.transformer is not None:
            padded = ~real
            # Attention needs a position, also where nothing is accepted yet; it is left out of the mean.
            padded[:, 0] = False
            sequence = self.transformer(sequence, src_key_padding_mask=padded)
        sequence = sequence.masked_fill(~real.unsqueeze(2), 0.0)
        mean = sequence.sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        state: Tensor = self.of_state(mean).relu()
        return state

    def actions(self, scene: Scene) -> Tensor:
        """``(B, K_p + K_v, d)`` embeddings of the actions; zeros where there is none."""
        ids = torch.cat([scene.question, scene.item], 1)
        first, tables = scene.question.shape[1], self.table
        if self.world.rules.question == "binary":
            place = torch.cat([scene.question + self.first_attribute, scene.item + self.first_item], 1)
            embedded = nn.functional.embedding(place.clamp(min=0), tables)
        else:
            leaves = self.world.leaves
            of_leaf = nn.functional.embedding(leaves.clamp(min=0) + self.first_attribute, tables)
            of_type = (of_leaf * (leaves >= 0).unsqueeze(2)).sum(1) / (leaves >= 0).sum(1, keepdim=True).clamp(min=1)
            asked = nn.functional.embedding(ids[:, :first].clamp(min=0), of_type)
            listed = nn.functional.embedding(ids[:, first:].clamp(min=0) + self.first_item, tables)
            embedded = torch.cat([asked, listed], 1)
        return embedded * (ids >= 0).unsqueeze(2)


class UnicornQNetwork(sb3.QNetwork):
    """``UnicornNetwork`` as a Q-network of Stable-Baselines3."""

    def __init__(self, *args: Any, world: Conversation, settings: UnicornSettings, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.q_net = UnicornNetwork(world, settings)  # type: ignore[assignment]

    def forward(self, obs: Any) -> Tensor:
        """``(n, K_p + K_v)`` values."""
        values: Tensor = self.q_net(obs)
        return values


class UnicornPolicy(DQNPolicy):
    """A policy of ``DQN`` with ``UnicornNetwork`` for both networks.

    Args:
        *args: of ``DQNPolicy``.
        world: of the dialogues.
        settings: of the network.
        **kwargs: of ``DQNPolicy``.
    """

    def __init__(self, *args: Any, world: Conversation, settings: UnicornSettings, **kwargs: Any) -> None:
        # Before SB3's constructor, which builds the networks.
        self.network: dict[str, Any] = {"world": world, "settings": settings}
        kwargs.setdefault("features_extractor_class", CombinedExtractor)
        super().__init__(*args, **kwargs)

    def make_q_net(self) -> sb3.QNetwork:
        """A new network."""
        assert isinstance(self.observation_space, spaces.Dict)
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        return UnicornQNetwork(**net_args, **self.network).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self.network
