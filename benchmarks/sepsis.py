"""Debates about sepsis: a batch against one at a time in a gymnasium environment, with the same networks."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from apps.sepsis.game import FEATURES, DebateGame
from apps.sepsis.judge import Judge
from apps.sepsis.learned_debaters import LearnedDebater
from apps.sepsis.preferences import Preferences
from benchmarks.clock import rates, spread
from core.simulation import SB3VecEnv
from simulators.sepsis.features import ACTIONS

DEBATES, ITEMS = 512, 6


class OneDebate(gymnasium.Env[Any, Any]):
    """The plain way: arrays of one debate, the rival and the judge asked in it, a row at a time."""

    def __init__(self, judge: Judge, rival: nn.Module, pairs: Preferences) -> None:
        self.judge, self.rival = judge, rival
        self.pairs = [x.numpy() for x in (pairs.state, pairs.preferred, pairs.rejected)]
        self.observation_space = spaces.Box(-np.inf, np.inf, (2 * FEATURES + ACTIONS,), np.float32)
        self.action_space = spaces.Discrete(FEATURES)
        self.one_hot = np.eye(ACTIONS, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Draw a pair, a role and who starts."""
        super().reset(seed=seed)
        state, preferred, rejected = self.pairs
        row = int(self.np_random.integers(len(state)))
        self.state, actions = state[row], (preferred[row], rejected[row])
        role = int(self.np_random.integers(2))
        self.own, self.other = actions[role], actions[1 - role]
        self.mask, self.turn = np.zeros(FEATURES, bool), 0
        if self.np_random.integers(2):
            self._answer()
        return self._view(self.own), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Reveal an item, hear the rival, and be paid after the last one."""
        self.mask[action] = True
        self.turn += 1
        if self.turn < ITEMS:
            self._answer()
        over = self.turn >= ITEMS
        return self._view(self.own), self._verdict() if over else 0.0, over, False, {}

    def _answer(self) -> None:
        self.mask[likeliest(self.rival, self._view(self.other), self.mask)] = True
        self.turn += 1

    def _view(self, action: int) -> np.ndarray:
        return np.concatenate([self.state, self.mask, self.one_hot[action]], dtype=np.float32)

    @torch.no_grad()
    def _verdict(self) -> float:
        state, mask = (torch.from_numpy(x).expand(2, -1) for x in (self.state, self.mask))
        own, other = self.judge(state, mask, torch.tensor([self.own, self.other])).tolist()
        return float(np.sign(own - other))


@torch.no_grad()
def likeliest(net: nn.Module, view: np.ndarray, mask: np.ndarray) -> int:
    """The item that a network rates highest in one debate."""
    logits = net(torch.from_numpy(view)[None])[0]
    return int(logits.masked_fill(torch.from_numpy(mask), -torch.inf).argmax())


def debater(hidden: int) -> LearnedDebater:
    """A network as the study's, untrained."""
    layers = nn.Linear(2 * FEATURES + ACTIONS, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
    return LearnedDebater(nn.Sequential(*layers, nn.Linear(hidden, FEATURES)).requires_grad_(False), ITEMS)


def pairs(n: int) -> Preferences:
    """Random states and actions."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(ACTIONS, (n,), generator=generator)
    shift = torch.randint(1, ACTIONS, (n,), generator=generator)
    zero = torch.zeros(n, dtype=torch.long)
    state = torch.randn(n, FEATURES, generator=generator)
    return Preferences(state, first, (first + shift) % ACTIONS, zero, zero, torch.ones(n))


def main(repeats: int = 5) -> None:
    """Print rates and ratio for the networks of the quick and of the paper's study."""
    print(f"  moves of a learner in alternating debates of {ITEMS} items against a frozen rival, on a CPU")
    # With the paper's networks the batch is as fast as the core multiplies matrices, and the ratio says only that.
    for name, hidden, width in (("quick, target 20 x", 128, 128), ("paper", 512, 256)):
        torch.manual_seed(0)
        judge, net, rival = Judge(ITEMS, width).eval(), debater(hidden).net, debater(hidden)
        env = OneDebate(judge, rival.net, pairs(5000))
        view = SB3VecEnv(DebateGame(judge, pairs(5000), ITEMS, rival), DEBATES, scaled=False, seed=0)

        def alone(debates: int = 100, env: OneDebate = env, net: nn.Module = net) -> int:
            moves = 0
            for _ in range(debates):
                seen, _ = env.reset()
                over = False
                while not over:
                    seen, _, over, _, _ = env.step(likeliest(net, seen, env.mask))
                    moves += 1
            return moves

        @torch.no_grad()
        def batched(roll_outs: int = 10, view: SB3VecEnv = view, net: nn.Module = net) -> int:
            moves = ITEMS // 2 * roll_outs
            seen = view.reset_tensor()
            assert isinstance(seen, Tensor)
            for _ in range(moves):
                item = net(seen).masked_fill(~view.episodes.action_mask(), -torch.inf).argmax(1)
                seen = view.step_tensor(item).obs
            return moves * DEBATES

        ours, theirs = rates(batched, repeats), rates(alone, repeats)
        ratio = float(np.median(ours) / np.median(theirs))
        print(f"    {name}: one at a time {spread(theirs)}, {DEBATES} at once {spread(ours)} moves/s = {ratio:.3g} x")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
