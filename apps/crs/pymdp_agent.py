"""Active inference with pymdp: the generative model written out as tables, for small catalogues.

Heins et al. (2022, JOSS 7, 4098). Hidden factors: the item that the user has in mind, which nothing moves, and the last
action, which the next one replaces. One modality with the outcomes null, no, yes, rejected, accepted; the likelihood
table A ``(5, V, P + 1)`` has a column for each attribute and one for "recommend the K items of the largest q", which is
rewritten at every turn. Policies are single actions. ``apps.crs.active_inference`` is the same in closed form, without
tables of all items by all actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from apps.crs.active_inference import ActiveInference, Preferences
from apps.crs.evaluation import Cases
from apps.crs.policies import Policy
from core.errors import InputError, require
from core.simulation import tree
from simulators.crs import selection
from simulators.crs.belief import Belief
from simulators.crs.conversation import Conversation
from simulators.crs.dialogue import LIST_ACCEPTED, LIST_REJECTED, NO, NONE, YES
from simulators.crs.selection import Observation

MOST_ITEMS, MOST_ACTIONS = 512, 128
"""Larger tables are refused: they take 20 bytes times items times actions in each dialogue."""
OUTCOMES = ("null", "no", "yes", "rejected", "accepted")
_NO, _YES, _REJECTED, _ACCEPTED = 1, 2, 3, 4
_OF_ANSWER = {NO: _NO, YES: _YES, LIST_REJECTED: _REJECTED, LIST_ACCEPTED: _ACCEPTED}
Array = Any
"""Of jax."""


class PymdpAgent(Policy):
    """The action of the largest negative expected free energy, by a ``pymdp.agent.Agent``.

    The agent replays the dialogue, turn by turn, from what was asked and answered. The first call compiles.

    Args:
        world: the conversation; binary questions.
        belief: the user model.
        preferences: over the outcomes of a list.
        batch: dialogues that the agent's tables are made for; more are taken in turns, fewer are padded.
        seed: unused; there are no coins.

    Raises:
        InputError: questions that are not binary, a catalogue that is too large, or a batch below 1.
        MissingExtra: pymdp is not installed.
    """

    relaxes = True

    def __init__(
        self,
        world: Conversation,
        belief: Belief = Belief(),  # noqa: B008 (frozen)
        preferences: Preferences = Preferences(),  # noqa: B008 (frozen)
        *,
        batch: int = 16,
        seed: int = 0,
    ) -> None:
        items, actions = world.catalogue.n_items, world.catalogue.n_attributes + 1
        if world.rules.question != "binary":
            raise InputError(f"pymdp: rules.question = {world.rules.question!r}: must be 'binary'")
        if items > MOST_ITEMS or actions > MOST_ACTIONS:
            raise InputError(
                f"pymdp: {items} items and {actions} actions; at most {MOST_ITEMS} and {MOST_ACTIONS} "
                "(active inference in closed form has no limit)"
            )
        if batch < 1:
            raise InputError(f"pymdp: batch = {batch}: must be at least 1")
        require("pymdp.agent", "crs")
        self.belief, self.preferences, self.batch = belief, preferences, batch
        self._model = _Model(world, belief, preferences, batch)
        super().__init__(world, seed=seed)

    def __call__(self, observation: Observation, state: Any = None) -> Tensor:
        """See the class."""
        value, items, _ = self._inferred(observation)
        best = value.argmax(1)
        asks = selection.ask(self.world, best.unsqueeze(1))
        is_list = (best == self.world.catalogue.n_attributes).unsqueeze(1)
        return torch.where(is_list, selection.recommend(self.world, items), asks)

    def recommend(self, observation: Observation) -> Tensor:
        """``(B, A)`` the K items of the largest q among those that were not recommended."""
        return selection.recommend(self.world, self._inferred(observation)[1])

    def posterior(self, observation: Observation) -> Tensor:
        """Q ``(B, V)``."""
        return self._inferred(observation)[2]

    def neg_efe(self, observation: Observation) -> Tensor:
        """``(B, P + 1)`` -G in nats of each question, -inf for those that were asked, and of the best list."""
        return self._inferred(observation)[0]

    def reset(self, batch: int) -> None:
        """Begin new dialogues."""
        super().reset(batch)
        self._known: tuple[tuple[Tensor, ...], tuple[Tensor, Tensor, Tensor]] | None = None

    def _inferred(self, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """-G ``(B, P + 1)``, the best list ``(B, K)`` and q ``(B, V)``; those of the last observation are kept."""
        read = tuple(observation.values())
        if self._known is None or any(a is not b for a, b in zip(read, self._known[0], strict=True)):
            rows = torch.arange(len(observation["user"])).split(self.batch)
            parts = [self._part({name: value[some] for name, value in observation.items()}) for some in rows]
            value, items, q = (torch.cat(found).to(self.world.device) for found in zip(*parts, strict=True))
            asked = torch.nn.functional.pad(observation["asked"].bool(), (0, 1))
            self._known = read, (value.masked_fill(asked, -torch.inf), items, q)
        return self._known[1]

    def _part(self, observation: Observation) -> list[Tensor]:
        """The same of at most ``batch`` dialogues, without the mask."""
        rows = len(observation["user"])
        padded = {name: _padded(value.cpu().numpy(), self.batch) for name, value in observation.items()}
        q = _padded(self._opened(observation).cpu().numpy(), self.batch)
        # Where jax finds a faster device it would compute there.
        with require("jax", "crs").default_device(self._model.device):
            found = self._model.decide(self._model.replay(q, padded), padded["recommended"])
        return [torch.as_tensor(np.array(x[:rows])) for x in found]

    def _opened(self, observation: Observation) -> Tensor:
        """``(b, V)`` the prior with the opening as a "yes"."""
        opening = observation["order"][:, 0]
        said = torch.zeros_like(observation["accepted"], dtype=torch.bool)
        said[opening >= 0, opening[opening >= 0]] = True
        nothing = {name: torch.zeros_like(observation[name]) for name in ("rejected", "recommended")}
        return self.belief.posterior(self.world, {"user": observation["user"], "accepted": said, **nothing})


def _padded(values: NDArray[Any], rows: int) -> NDArray[Any]:
    """Filled up with copies of the first row."""
    return np.concatenate([values, np.repeat(values[:1], rows - len(values), axis=0)])


@dataclass(frozen=True)
class _Model:
    """The tables of ``batch`` dialogues, and the agent that reads them."""

    world: Conversation
    belief: Belief
    preferences: Preferences
    batch: int

    @cached_property
    def likelihood(self) -> NDArray[np.float32]:
        """A ``(5, V, P + 1)``; the column of the list is empty."""
        catalogue, error = self.world.catalogue, self.belief.error
        table = np.zeros((len(OUTCOMES), catalogue.n_items, catalogue.n_attributes + 1), dtype=np.float32)
        table[_NO, :, :-1], table[_YES, :, :-1] = 1 - error, error
        item, attribute = catalogue.edges.T
        table[_NO, item, attribute], table[_YES, item, attribute] = error, 1 - error
        table[_REJECTED, :, -1] = 1
        return table

    @cached_property
    def device(self) -> Any:
        """Of jax, where the tables are."""
        return require("jax", "crs").devices("cpu")[0]

    @cached_property
    def agent(self) -> Any:
        """The ``pymdp.agent.Agent``."""
        jax, numpy = require("jax", "crs"), require("jax.numpy", "crs")
        with jax.default_device(self.device):
            items, actions = self.likelihood.shape[1:]
            moves = np.broadcast_to(np.eye(actions, dtype=np.float32)[:, None], (actions, actions, actions))
            worth = [0, 0, 0, -self.preferences.reject, self.preferences.accept]
            tables = [numpy.eye(items, dtype=np.float32)[..., None], numpy.asarray(moves)]
            return require("pymdp.agent", "crs").Agent(
                A=[numpy.asarray(self.likelihood)],
                B=[numpy.broadcast_to(table, (self.batch, *table.shape)) for table in tables],
                C=[numpy.broadcast_to(numpy.array(worth, dtype=np.float32), (self.batch, len(worth)))],
                D=[numpy.full((self.batch, n), 1 / n, dtype=np.float32) for n in (items, actions)],
                policies=numpy.stack([numpy.zeros(actions, int), numpy.arange(actions)], 1)[:, None],
                num_controls=[1, actions],
                control_fac_idx=[1],
                gamma=16.0,
                num_iter=4,
                batch_size=self.batch,
            )

    def replay(self, q: Array, observation: dict[str, NDArray[Any]]) -> Array:
        """Q ``(batch, V)`` after all turns so far, from q after the opening."""
        infer, _ = _compiled(self.world.rules.list_length)
        items, actions = self.likelihood.shape[1:]
        outcomes = np.array([_OF_ANSWER.get(answer, NONE) for answer in range(LIST_ACCEPTED + 1)], dtype=np.int32)
        q = np.asarray(q, dtype=np.float32)
        for t in range(int(observation["turn"].max())):
            question, answer = observation["questions"][:, t], observation["answers"][:, t]
            outcome = np.where(answer >= 0, outcomes[answer], NONE).astype(np.int32)
            listed = np.zeros((len(q), items + 1), dtype=bool)
            # Places without an item fall on a column beyond the last, which is cut off.
            np.put_along_axis(listed, observation["lists"][:, t] % (items + 1), True, axis=1)
            action = np.where(question >= 0, question, actions - 1).astype(np.int32)
            q = infer(self.agent, q, action, outcome, listed[:, :-1])
        return q

    def decide(self, q: Array, recommended: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
        """-G ``(batch, P + 1)``, the best list ``(batch, K)``, q."""
        _, decide = _compiled(self.world.rules.list_length)
        decided: tuple[Array, Array, Array] = decide(self.agent, q, recommended.astype(bool))
        return decided


@lru_cache
def _compiled(length: int) -> tuple[Any, Any]:
    """``infer(agent, q, action, outcome, listed)``, the next q, and ``decide(agent, q, recommended)``, both compiled.

    Args:
        length: K.
    """
    jax, numpy, equinox = require("jax", "crs"), require("jax.numpy", "crs"), require("equinox", "crs")

    def with_list(agent: Any, listed: Array) -> Any:
        held = listed.astype(np.float32)
        table = agent.A[0].at[:, _REJECTED, :, -1].set(1 - held).at[:, _ACCEPTED, :, -1].set(held)
        return equinox.tree_at(lambda a: a.A[0], agent, table)

    def factors(agent: Any, q: Array) -> list[Array]:
        return [q[:, None], agent.D[1][:, None]]

    def infer(agent: Any, q: Array, action: Array, outcome: Array, listed: Array) -> Array:
        agent = with_list(agent, listed)
        prior = agent.update_empirical_prior(numpy.stack([numpy.zeros_like(action), action], 1), factors(agent, q))
        said = numpy.maximum(outcome, 0)[:, None]
        after = agent.infer_states([said], prior)[0][:, -1]
        return numpy.where((outcome >= 0)[:, None], after, q)

    def decide(agent: Any, q: Array, recommended: Array) -> tuple[Array, Array, Array]:
        best, items = jax.lax.top_k(numpy.where(recommended, -1.0, q), min(length, q.shape[1]))
        rows = numpy.arange(len(q))[:, None]
        listed = numpy.zeros(q.shape, bool).at[rows, items].set(best >= 0)
        _, value = with_list(agent, listed).infer_policies(factors(agent, q))
        return value, numpy.where(best >= 0, items, NONE), q

    return equinox.filter_jit(infer), equinox.filter_jit(decide)


def compare_with_closed_form(
    world: Conversation,
    cases: Cases,
    *,
    turns: int = 5,
    belief: Belief = Belief(),  # noqa: B008 (frozen)
    preferences: Preferences = Preferences(),  # noqa: B008 (frozen)
) -> xr.Dataset:
    """-G of every action by both, along dialogues that the closed form leads.

    Returns:
        Dataset over ``(dialogue, turn, action)``, the last action the list: ``closed_form``, ``pymdp`` in nats, NaN for
        questions that were asked and dialogues that are over; and ``difference``, the absolute one.

    Raises:
        InputError: turns out of range, or what ``PymdpAgent`` refuses.
    """
    if not 1 <= turns <= world.rules.max_turns:
        raise InputError(f"turns = {turns}: must be 1 to {world.rules.max_turns}")
    world = world.with_rules(on_empty="relax")
    ours = ActiveInference(world, belief, preferences)
    theirs = PymdpAgent(world, belief, preferences, batch=len(cases.pairs))
    generator = torch.Generator(world.device).manual_seed(cases.seed)
    state, alive = world.reset_to(cases.pairs, cases.opening), torch.arange(len(cases.pairs), device=world.device)
    shape = (2, len(cases.pairs), turns, world.catalogue.n_attributes + 1)
    found = torch.full(shape, torch.nan)
    for t in range(turns):
        noise = tree.take(world.noise(len(cases.pairs), generator), alive)
        known = world.observe(state, noise)
        for i, value in enumerate((ours.neg_efe(known), theirs.neg_efe(known))):
            found[i, alive.cpu(), t] = value.masked_fill(value.isinf(), torch.nan).cpu()
        step = world.step(state, ours(known, state), noise)
        state, alive = tree.take(step.state, ~step.terminated), alive[~step.terminated]
        if not len(alive):
            break
    dims, unit = ("dialogue", "turn", "action"), {"units": "nats"}
    values = {name: (dims, found[i].numpy(), unit) for i, name in enumerate(("closed_form", "pymdp"))}
    difference = (dims, (found[0] - found[1]).abs().numpy(), unit)
    return xr.Dataset({**values, "difference": difference}, {"turn": np.arange(1, turns + 1)})
