"""What can be set about UNICORN; the defaults are those of Deng et al. (2021, arXiv 2105.09710) and its code."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from core.errors import InputError
from core.study import Config
from simulators.crs.selection import Selection


class UnicornSettings(Config):
    """UNICORN: its action set, network and training.

    ``compat: official`` follows the published code where it departs from the paper on purpose or by habit: one layer of
    the graph with A as it is, without the term of the node itself and the ReLU; exploration at its final rate from the
    first turn on; and exploring means a list or a question in proportion to the numbers of candidates and of open
    attributes.
    """

    compat: Literal["paper", "official"] = "paper"
    """See above."""
    questions: int = Field(default=10, ge=1)
    """K_p, questions to choose from."""
    items: int = Field(default=10, ge=1)
    """K_v, items to choose from."""
    attribute_selection: Selection = "weighted_entropy"
    """How the questions are picked; ``entropy`` and ``random`` are ablations."""
    item_selection: Literal["score", "random"] = "score"
    """How the items are picked; ``random`` is an ablation."""

    hidden: int = Field(default=100, ge=1)
    """Width of all layers."""
    layers: Literal[1, 2] = 2
    """L_g, layers of the graph convolution."""
    heads: int = Field(default=4, ge=1)
    """Of the Transformer's attention; a divisor of ``hidden``."""
    feedforward: int = Field(default=400, ge=1)
    """Width of the Transformer's inner layer."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """In the Transformer, while learning."""
    graph_items: int = Field(default=5000, ge=1)
    """Most candidates in a graph, those of the largest scores."""
    train_embeddings: bool = True
    """Whether the embeddings are learnt further."""
    pretrained: bool = True
    """Begin with the embeddings of the world; without, an ablation, with random ones."""
    graph: bool = True
    """Without, an ablation, the accepted attributes have a projection of their own embeddings."""
    transformer: bool = True
    """Without, an ablation, the state is the mean over the accepted attributes."""

    steps: int = Field(default=70_000, ge=1)
    """Turns of training: 10,000 dialogues of about seven."""
    looks: int = Field(default=10, ge=1)
    """How often the policy is judged on held-out dialogues."""
    envs: int = Field(default=1, ge=1)
    """Dialogues at once."""
    updates: int = Field(default=1, ge=1)
    """Gradient steps after a turn of all of them."""
    batch: int = Field(default=128, ge=1)
    """Transitions of a gradient step."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Of Adam, at first."""
    final_learning_rate: float | None = Field(default=None, gt=0)
    """At last; it falls linearly. Constant if not given."""
    weight_decay: float = Field(default=1e-6, ge=0)
    """Factor of the squared weights, L2."""
    memory: int = Field(default=50_000, ge=1)
    """Transitions that are remembered."""
    learning_starts: int = Field(default=128, ge=0)
    """Turns before the first gradient step."""
    gamma: float = Field(default=0.999, gt=0, le=1)
    """Discount of a turn."""
    tau: float = Field(default=0.01, gt=0, le=1)
    """Share by which the target network follows in each gradient step."""
    priority_alpha: float = Field(default=0.6, ge=0, le=1)
    """Exponent of the priorities."""
    priority_eps: float = Field(default=0.01, gt=0)
    """Added to the errors."""
    priority_initial: float = Field(default=0.1, gt=0)
    """Priority of the first transitions."""
    priority_beta: float = Field(default=0.4, ge=0, le=1)
    """Exponent of the importance weights at first."""
    priority_beta_step: float = Field(default=0.001, ge=0)
    """By which it grows with every gradient step, up to 1."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longest gradient."""
    explore: tuple[float, float] = (0.9, 0.1)
    """Probability of a random allowed action, at first and at last."""
    explore_share: float = Field(default=0.2, gt=0, le=1)
    """Share of the training in which it falls."""

    demonstrations: int = Field(default=0, ge=0)
    """Dialogues of a demonstrator that are learnt from as well."""
    pretraining: int = Field(default=0, ge=0)
    """Gradient steps on demonstrations alone, before the training."""
    demonstration_share: float = Field(default=0.25, ge=0, lt=1)
    """Of each batch."""
    imitation: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = (1.0, 1.0)
    """Factor of the loss that makes demonstrated actions the best, at first and at last; it falls linearly."""
    margin: float = Field(default=0.1, ge=0)
    """By which a demonstrated action is to be better than the others."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.hidden % self.heads:
            raise InputError(f"heads: {self.heads}; must be a divisor of hidden, {self.hidden}")
        if self.pretraining and not self.demonstrations:
            raise InputError(f"pretraining: {self.pretraining}; must be 0 without demonstrations")
        return self

    @property
    def depth(self) -> int:
        """Layers of the graph convolution under ``compat``."""
        return 1 if self.compat == "official" else self.layers
