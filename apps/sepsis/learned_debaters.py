"""Debaters that learn: alone, against copies of themselves, or against a confuser that learns with them.

Sukovic & Radanovic, Reward Design for Justifiable Sequential Decision-Making, ICLR 2024 (arXiv 2402.15826), section 4,
and the authors' code, whose settings are the defaults here. The learner is PPO with masks and dual clip
(``core.rl.DualClipPPO``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from apps.sepsis.debate import Debater, Order, Position, Scorer, Utility, check_items
from apps.sepsis.debaters import LookaheadDebater
from apps.sepsis.game import DebateGame, view
from apps.sepsis.preferences import Preferences
from core import files
from core.checkpoint import Checkpoint
from core.errors import InputError
from core.rl import DualClipPPO
from core.rl.checkpoint import load_parameters, parameters, read_tensors
from core.seeds import stream
from core.simulation import SB3VecEnv
from core.study import Config
from core.study.config import digest
from simulators.sepsis.features import ACTIONS, STATE, feature_hash

Kind = Literal["isolated", "precommit", "self_play", "maxmin"]
"""How debaters are trained."""
Progress = Callable[[float, str], None]

WEIGHTS, RECORD = "debater.safetensors", "debater.json"
STATE_FILE = "debaters.safetensors"
CHUNK = 1 << 16
"""Positions at a time when a debater chooses."""
BLOCK = 10
"""Updates between two checkpoints where the rival does not change."""


class DebaterSettings(Config):
    """Game, network and PPO of a debater; the defaults are the published ones for a judge of 6 items."""

    items: int = Field(default=6, ge=1, le=len(STATE))
    """Items L that the judge is shown."""
    utility: Utility = "sign"
    """What the judge pays."""
    roles: Literal["preferred_only", "both"] = "both"
    """In self-play, whether the learner always argues for the preferred action, as published, or for either."""
    sampled_rival: bool = False
    """In self-play and maxmin, whether the frozen rival draws its items instead of playing the likeliest."""
    hidden: int = Field(default=512, ge=1)
    """Units of each of the two hidden layers, of actor and critic."""
    debates: int = Field(default=256, ge=2)
    """Debates of a roll-out, all at once."""
    iterations: int = Field(default=2000, ge=0)
    """Roll-outs of an isolated or precommitted debater, or of a confuser trained against a fixed one."""
    generations: int = Field(default=500, ge=1)
    """Times that the rival is renewed in self-play and maxmin."""
    generation_iterations: int = Field(default=150, ge=1)
    """Roll-outs of a generation: of the learner in self-play, of the confuser in maxmin."""
    argument_iterations: int = Field(default=5, ge=1)
    """Roll-outs of a generation of the debater in maxmin."""
    repeats: int = Field(default=2, ge=1)
    """Passes over a roll-out."""
    minibatch: int = Field(default=128, ge=2)
    """Moves of a gradient step."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Of Adam."""
    gamma: float = Field(default=0.9, gt=0, le=1)
    """Discount of a move."""
    gae_lambda: float = Field(default=0.7, ge=0, le=1)
    """Of generalised advantage estimation."""
    clip_range: float = Field(default=0.1, gt=0)
    """Of the probability ratio."""
    value_clip: bool = True
    """Whether a step of the critic is clipped to the same range."""
    dual_clip: float | None = Field(default=5.0, gt=1)
    """Factor of the lower bound of the objective of bad moves; null for none."""
    entropy: float = Field(default=1e-2, ge=0)
    """Weight of the policy's entropy."""
    value_weight: float = Field(default=0.5, ge=0)
    """Weight of the critic's loss."""
    max_gradient: float = Field(default=1.0, gt=0)
    """The gradient is cut to this length."""
    normalize_returns: bool = True
    """Divide returns by their running standard deviation."""
    warm_start: int = Field(default=0, ge=0)
    """Moves of a debater who looks one item ahead that the actor first learns to imitate; 0 starts from nothing."""
    warm_epochs: int = Field(default=30, ge=1)
    """Passes over those moves."""


class ConfuserSettings(DebaterSettings):
    """The same for a confuser that is trained against a finished debater."""

    hidden: int = Field(default=256, ge=1)
    """Units of each of the two hidden layers, of actor and critic."""
    clip_range: float = Field(default=0.4, gt=0)
    """Of the probability ratio."""
    entropy: float = Field(default=3e-4, ge=0)
    """Weight of the policy's entropy."""
    value_weight: float = Field(default=0.65, ge=0)
    """Weight of the critic's loss."""
    max_gradient: float = Field(default=2.0, gt=0)
    """The gradient is cut to this length."""


class LearnedDebater:
    """A network that sees the state, what is revealed and its own action, and reveals the item that it rates highest.

    Args:
        net: 113 inputs (``game.view``) to 44 logits.
        items: L of the debates it was trained for.
        features: names of the state's features, in order.

    Attributes:
        history: a line for each stage of the training: who learned, over how many roll-outs, and the share of the
            latest debates that it won.
    """

    def __init__(self, net: nn.Sequential, items: int, features: Sequence[str] = STATE) -> None:
        self.net, self.items, self.features = net.eval(), items, tuple(features)
        self.history: list[dict[str, float]] = []

    @torch.no_grad()
    def logits(self, position: Position) -> Tensor:
        """``(N, 44)``, unnormalised log-probabilities of the items; -inf for those on the table."""
        seen = zip(*(x.split(CHUNK) for x in (position.state, position.revealed, position.own)), strict=True)
        logits = torch.cat([self.net(view(*part)) for part in seen])
        return logits.masked_fill(position.revealed, -torch.inf)

    def choose(self, position: Position) -> Tensor:
        """``(N,)`` int64, the likeliest item that is not revealed."""
        return self.logits(position).argmax(1)

    def to(self, device: torch.device | str) -> LearnedDebater:
        """The same, moved to another device."""
        self.net.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write ``debater.safetensors`` and ``debater.json`` into a folder, each atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: x.detach().cpu().clone().contiguous() for name, x in self.net.state_dict().items()}
        files.write(folder / WEIGHTS, safetensors.torch.save(weights))
        names = {"features": list(self.features), "feature_hash": feature_hash(self.features)}
        settings = {"items": self.items, "hidden": self.net[0].out_features}
        files.write(folder / RECORD, json.dumps({**settings, **names, "history": self.history}, indent=2) + "\n")

    @staticmethod
    def load(folder: Path, items: int | None = None, features: Sequence[str] = STATE) -> LearnedDebater:
        """The debater in a folder, on the CPU.

        Args:
            folder: that ``save`` was given.
            items: L of the debates it will hold; None takes any debater.
            features: of the states it will see.

        Raises:
            InputError: missing or damaged files, a debater for another number of items, or for other features.
        """
        source = folder / RECORD
        record = files.read_json(source, ("items", "hidden", "features", "feature_hash", "history"))
        if record["feature_hash"] != feature_hash(features):
            raise InputError(f"{source}: feature_hash {record['feature_hash']}; needed here: {feature_hash(features)}")
        if items is not None and record["items"] != items:
            raise InputError(f"{source}: items is {record['items']}; needed here: {items}")
        if not isinstance(record["hidden"], int) or record["hidden"] < 1:
            raise InputError(f"{source}: hidden is {record['hidden']!r}; must be a whole number, at least 1")
        net = _actor(record["hidden"], len(features))
        try:
            net.load_state_dict(read_tensors(folder / WEIGHTS)[0])
        except RuntimeError as error:
            raise InputError(f"{folder / WEIGHTS}: {' '.join(str(error).split())}") from error
        debater = LearnedDebater(net, record["items"], features)
        debater.history = record["history"]
        return debater


def train_debaters(
    kind: Kind,
    judge: Scorer,
    preferences: Preferences,
    settings: DebaterSettings,
    seed: int,
    *,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> tuple[LearnedDebater, LearnedDebater]:
    """Train debaters of a kind; who argues for an action, and who against it (the same one except in maxmin).

    Args:
        kind: see ``train_isolated``, ``train_precommit``, ``train_self_play``, ``train_maxmin``.
        judge: pays, and stays as it is; on ``device``.
        preferences: the pairs that are debated.
        settings: see ``DebaterSettings``.
        seed: of networks and debates.
        device: where to train; the debaters stay there.
        checkpoint: folder of the exact state, from which a killed training goes on; a finished one is only read.
        progress: told the share done and a message, each stage.

    Raises:
        InputError: no preferences, a judge of another number of items, or a checkpoint of another training.
        TrainingDiverged: a loss or a parameter is not finite; ``checkpoint`` holds the last state that was kept.
    """
    options: Any = {"device": device, "checkpoint": checkpoint, "progress": progress}
    if kind == "maxmin":
        return train_maxmin(judge, preferences, settings, seed, **options)
    train = {"isolated": train_isolated, "precommit": train_precommit, "self_play": train_self_play}
    if kind not in train:
        raise InputError(f"kind: {kind!r}; allowed: {', '.join(train)}, maxmin")
    debater = train[kind](judge, preferences, settings, seed, **options)
    return debater, debater


def train_isolated(
    judge: Scorer, preferences: Preferences, settings: DebaterSettings, seed: int, **options: Any
) -> LearnedDebater:
    """A debater who reveals all L items alone, for the preferred action; see ``train_debaters``."""
    game = _game(judge, preferences, settings, options, role="preferred")
    return _train("isolated", 1, _blocks(settings.iterations, lambda _: game), settings, seed, **options)[0]


def train_precommit(
    judge: Scorer, preferences: Preferences, settings: DebaterSettings, seed: int, **options: Any
) -> LearnedDebater:
    """A debater who reveals L/2 items alone, without regard to what the other side may add; see ``train_debaters``.

    As published the judge is one that was trained for L/2 items; one for L items will do, but has never seen so few.
    """
    check_items(settings.items, len(STATE), players=2)
    half = settings.items // 2
    if getattr(judge, "items", None) == half:
        game = _game(judge, preferences, settings.model_copy(update={"items": half}), options, role="preferred")
    else:
        game = replace(_game(judge, preferences, settings, options, role="preferred"), items=half)
    return _train("precommit", 1, _blocks(settings.iterations, lambda _: game), settings, seed, **options)[0]


def train_self_play(
    judge: Scorer, preferences: Preferences, settings: DebaterSettings, seed: int, **options: Any
) -> LearnedDebater:
    """A debater against a frozen copy of itself, which is renewed every generation; see ``train_debaters``.

    As published the learner always argues for the preferred action. With ``roles="both"`` each debate draws the role,
    without which self-play leaves the copy in a role that it has never learned.
    """
    role: Any = "both" if settings.roles == "both" else "preferred"
    game = _game(judge, preferences, settings, options, role=role, rival=LookaheadDebater(judge))
    rivalled = partial(replace, game, sampled=settings.sampled_rival)
    stage = _Stage(0, lambda players: rivalled(rival=players[0]), settings.generation_iterations)
    return _train("self_play", 1, [stage] * settings.generations, settings, seed, **options)[0]


def train_maxmin(
    judge: Scorer, preferences: Preferences, settings: DebaterSettings, seed: int, **options: Any
) -> tuple[LearnedDebater, LearnedDebater]:
    """A debater for the preferred action and its confuser, in turns, each against the other frozen.

    The confuser gets far more roll-outs a generation, so that the debater learns against nearly the best reply; see
    ``train_debaters``.

    Returns:
        The debater and the confuser.
    """
    game = _game(judge, preferences, settings, options, role="preferred", rival=LookaheadDebater(judge))
    rivalled = partial(replace, game, sampled=settings.sampled_rival)
    confuse = _Stage(1, lambda players: rivalled(role="rejected", rival=players[0]), settings.generation_iterations)
    argue = _Stage(0, lambda players: rivalled(rival=players[1]), settings.argument_iterations)
    debater, confuser = _train("maxmin", 2, [confuse, argue] * settings.generations, settings, seed, **options)
    return debater, confuser


def train_confuser(
    judge: Scorer,
    preferences: Preferences,
    settings: DebaterSettings,
    seed: int,
    *,
    rival: Debater,
    order: Order = "alternating",
    **options: Any,
) -> LearnedDebater:
    """A debater for the rejected action, trained against a finished one, which shows how robust that one is.

    Args:
        judge: see ``train_debaters``, as are the others that are not named here.
        preferences: the pairs that are debated.
        settings: usually ``ConfuserSettings``.
        seed: of network and debates.
        rival: plays its likeliest item; a ``FixedEvidence`` has one list for each of the preferences.
        order: ``upfront`` has the rival lay down its L/2 items before the confuser answers.
        **options: ``device``, ``checkpoint``, ``progress``.
    """
    game = _game(judge, preferences, settings, options, role="rejected", rival=rival, order=order)
    if order == "upfront":
        game = replace(game, starter="rival")
    kind = f"confuser {order}"
    return _train(kind, 1, _blocks(settings.iterations, lambda _: game), settings, seed, **options)[0]


def _game(
    judge: Scorer, preferences: Preferences, settings: DebaterSettings, options: dict[str, Any], **given: Any
) -> DebateGame:
    items = getattr(judge, "items", settings.items)
    if items != settings.items:
        raise InputError(f"items: {settings.items}, but the judge was trained for {items}; must be equal")
    preferences = preferences.to(options.get("device", "cpu"))
    return DebateGame(judge, preferences, items=items, utility=settings.utility, **given)


@dataclass(frozen=True)
class _Stage:
    """So many roll-outs of one player, in the game that the players, as they are then, give."""

    player: int
    game: Callable[[list[LearnedDebater]], DebateGame]
    iterations: int


def _blocks(iterations: int, game: Callable[[list[LearnedDebater]], DebateGame]) -> list[_Stage]:
    return [_Stage(0, game, min(BLOCK, iterations - done)) for done in range(0, iterations, BLOCK)] or [
        _Stage(0, game, 0)
    ]


def _train(
    kind: str,
    players: int,
    stages: Sequence[_Stage],
    settings: DebaterSettings,
    seed: int,
    *,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> list[LearnedDebater]:
    """Go through the stages; what is random in one follows from the seed and its number alone."""
    report = progress or (lambda share, message: None)
    kept = Checkpoint(None if checkpoint is None else checkpoint / STATE_FILE)
    identity = torch.tensor(list(bytes.fromhex(digest([kind, settings.hash, seed]))), dtype=torch.uint8)
    first = [next(stage for stage in stages if stage.player == i) for i in range(players)]
    blank = [LearnedDebater(_actor(settings.hidden).to(device), settings.items) for _ in range(players)]
    models = [_model(stage.game(blank), settings, stream(seed, f"player {i}"), device) for i, stage in enumerate(first)]
    done, history = 0, torch.zeros(0, 3, dtype=torch.float64)
    if (saved := kept.load()) is not None:
        if not torch.equal(saved.get("identity", identity[:0]), identity):
            raise InputError(f"{kept.path}: of another training; remove it, or give another checkpoint")
        done, history = int(saved["stage"]), saved["history"]
        for i, model in enumerate(models):
            _restore(model, {name: x for name, x in saved.items() if name.startswith(f"{i}.")}, f"{i}.", str(kept.path))
    elif settings.warm_start:
        for i, model in enumerate(models):
            _imitate(model, first[i].game(blank), settings, stream(seed, f"lookahead moves {i}"))
    total = sum(stage.iterations for stage in stages)
    over = sum(stage.iterations for stage in stages[:done])
    for k, stage in enumerate(stages[done:], done):
        won = float("nan")
        if stage.iterations:
            game = stage.game([_debater(model, settings) for model in models])
            won = _learn(models[stage.player], game, stage.iterations, settings, stream(seed, f"stage {k}"))
        over += stage.iterations
        line = torch.tensor([[stage.player, stage.iterations, won]], dtype=torch.float64)
        history = torch.cat([history, line])
        if kept.due or k + 1 == len(stages):
            kept.save(dict(_tensors(models), identity=identity, stage=torch.tensor(k + 1), history=history))
        report(over / total if total else 1.0, f"{kind}: {won:.3f} of the debates won")
    debaters = [_debater(model, settings) for model in models]
    for debater in debaters:
        debater.history = [
            {"player": int(player), "iterations": int(n), "won": won} for player, n, won in history.tolist() if n
        ]
    return debaters


def _actor(hidden: int, features: int = len(STATE)) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(2 * features + ACTIONS, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, features),
    )


def _debater(model: DualClipPPO, settings: DebaterSettings) -> LearnedDebater:
    """A frozen copy of the model's actor."""
    policy: Any = model.policy
    net = _actor(settings.hidden).to(model.device)
    actor = [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()]
    with torch.no_grad():
        for copied, parameter in zip(net.parameters(), actor, strict=True):
            copied.copy_(parameter)
    return LearnedDebater(net.requires_grad_(False), settings.items)


def _view(game: DebateGame, settings: DebaterSettings, seed: int, device: torch.device | str) -> SB3VecEnv:
    return SB3VecEnv(game, settings.debates, scaled=False, device=device, seed=seed)


def _model(game: DebateGame, settings: DebaterSettings, seed: int, device: torch.device | str) -> DualClipPPO:
    s = settings
    return DualClipPPO(
        "MaskedMlpPolicy",
        _view(game, settings, seed, device),
        n_steps=game.moves,  # every debate of a roll-out is whole
        batch_size=min(s.minibatch, game.moves * s.debates),
        n_epochs=s.repeats,
        learning_rate=s.learning_rate,
        gamma=s.gamma,
        gae_lambda=s.gae_lambda,
        clip_range=s.clip_range,
        clip_range_vf=s.clip_range if s.value_clip else None,
        dual_clip=s.dual_clip,
        ent_coef=s.entropy,
        vf_coef=s.value_weight,
        max_grad_norm=s.max_gradient,
        normalize_returns=s.normalize_returns,
        policy_kwargs={
            "net_arch": [s.hidden, s.hidden],
            "activation_fn": nn.ReLU,
            "optimizer_kwargs": {"eps": 1e-5, "fused": True},
        },
        stats_window_size=s.debates,
        seed=seed,
        device=device,
    )


def _learn(model: DualClipPPO, game: DebateGame, iterations: int, settings: DebaterSettings, seed: int) -> float:
    """So many roll-outs in the game; the share of the debates of the last one that the learner won."""
    model.set_env(_view(game, settings, seed, model.device))
    torch.manual_seed(seed)
    model.learn(iterations * game.moves * settings.debates, reset_num_timesteps=False, log_interval=iterations)
    won = list(model.ep_success_buffer or ())
    return sum(won) / len(won)


def _imitate(model: DualClipPPO, game: DebateGame, settings: DebaterSettings, seed: int) -> None:
    """Cross-entropy of the actor to the moves of a debater who looks one item ahead, in the same game against one."""
    torch.manual_seed(seed)
    teacher = LookaheadDebater(game.judge)
    if game.rival is not None:
        game = replace(game, rival=teacher, sampled=False)
    seen, free, item = (torch.cat(parts) for parts in zip(*_moves(game, teacher, settings, seed), strict=True))
    policy: Any = model.policy
    actor = nn.Sequential(policy.mlp_extractor.policy_net, policy.action_net)
    optimizer = torch.optim.Adam(actor.parameters(), 1e-3, fused=True)
    for _ in range(settings.warm_epochs):
        for rows in torch.randperm(len(item), device=item.device).split(settings.minibatch):
            logits = actor(seen[rows]).masked_fill(~free[rows], -torch.inf)
            optimizer.zero_grad()
            functional.cross_entropy(logits, item[rows]).backward()
            optimizer.step()


def _moves(
    game: DebateGame, teacher: LookaheadDebater, settings: DebaterSettings, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """View, free items and choice of the teacher's moves in just enough debates."""
    device = game.preferences.state.device
    generator = torch.Generator(device).manual_seed(seed)
    debates = -(-settings.warm_start // game.moves)
    state = game.reset(debates, generator)
    for _ in range(game.moves):
        # Its debates may be unequally far, which a debater who looks one item ahead does not heed.
        item = teacher.choose(game.position(state))
        yield game.observe(state), game.action_mask(state), item
        state = game.step(state, item, game.noise(debates, generator)).state


def _tensors(models: Sequence[DualClipPPO]) -> Iterator[tuple[str, Tensor]]:
    for i, model in enumerate(models):
        yield from ((f"{i}.{name}", x) for name, x in parameters(model).items())
        yield f"{i}.moments", torch.tensor(model.return_moments, dtype=torch.float64)


def _restore(model: DualClipPPO, tensors: dict[str, Tensor], prefix: str, source: str) -> None:
    own = {name.removeprefix(prefix): x for name, x in tensors.items()}
    model.return_moments = own.pop("moments").tolist()
    load_parameters(model, own, source)
