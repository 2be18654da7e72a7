"""The generation loop: decide, log, wait for answers, learn from the recent log, deploy, and so on.

The order is that of a processor which retrains on its own logs (Vangara and Egg 2024, arXiv 2412.00569): generation 0
is uniform; after each generation the oracle is fitted to the matured rows of the last W generations, and the rule of
exploration turns its predictions into the policy of the next. Random numbers are keyed by (world, generation, purpose),
never by arm, so all arms meet the same payments and the same luck.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import xarray as xr
from torch import Tensor

from apps.payments.exploration import Learned, grouping_of
from apps.payments.measures import SEGMENTS, SERIES, Measures, OnlineSums
from apps.payments.oracles import Oracle, OracleNotFitted, Rows, fit_oracle, load_oracle
from apps.payments.scenario import Arm, Scenario
from core import files
from core.bandits import sample_actions, sample_epsilon_slice, uniform
from core.seeds import stream
from simulators.payments import PaymentContext, PaymentState, dense_mask

BLOCK = 2**16
"""Payments that are decided at once; bounds the memory of (payments x actions), and is part of the random streams."""
CHECKPOINT_SECONDS = 20.0
STATE = "state.json"


@dataclass(frozen=True)
class LoggedGeneration:
    """What one generation leaves to learn from, each ``(n,)``.

    Attributes:
        state: the payments, with the interventions that were available.
        action: chosen.
        propensity: probability with which it was.
        coin: the row may teach the oracle (the exploration slice; all rows of other rules).
        reward: the answer.
        arrival: hours since the start of generation 0 when the answer is known, infinite for never.
    """

    state: PaymentState
    action: Tensor
    propensity: Tensor
    coin: Tensor
    reward: Tensor
    arrival: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Every column by name."""
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "state"}
        return columns | {f"state.{f.name}": getattr(self.state, f.name) for f in fields(PaymentState)}

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> LoggedGeneration:
        """The inverse of ``tensors``."""
        state = PaymentState(**{f.name: tensors[f"state.{f.name}"] for f in fields(PaymentState)})
        return LoggedGeneration(state, **{n: x for n, x in tensors.items() if not n.startswith("state.")})

    @staticmethod
    def cat(parts: list[LoggedGeneration]) -> LoggedGeneration:
        """The rows of all parts, in order."""
        columns = [part.tensors() for part in parts]
        return LoggedGeneration.of({name: torch.cat([c[name] for c in columns]) for name in columns[0]})


@dataclass(frozen=True)
class Decided:
    """One block of decisions: the policy's probabilities, what was chosen, and the truth about all actions."""

    probabilities: Tensor
    mask: Tensor
    truth: Tensor
    rows: LoggedGeneration


class GenerationLoop:
    """An arm in a world, generation by generation.

    Args:
        scenario: the worlds.
        arm: with its tuned number set.
        seed: of the world.
        device: where the decisions are computed.
        measure: also measure every model on the evaluation set.

    Attributes:
        generation: the next one.
        rows: the generations that may still be learned from, the last one last.
        oracle: of the next generation; several for ``thompson_bootstrap``; empty before the first.
        learned: what the rule has to know of it.
        notes: what did not go as usual, in words.
    """

    def __init__(
        self, scenario: Scenario, arm: Arm, seed: int, device: torch.device | str = "cpu", *, measure: bool = True
    ) -> None:
        self.scenario, self.arm, self.seed, self.device = scenario, arm, seed, torch.device(device)
        self.world = scenario.world(seed, device)
        self.generation, self.epoch = 0, 1
        self.learned = Learned()
        self.rows: list[LoggedGeneration] = []
        self.oracle: list[Oracle[Any]] = []
        self.notes: list[str] = []
        self.records: dict[str, list[np.ndarray]] = {}
        self.measures = Measures(scenario, seed, self.device) if measure else None

    def generator(self, purpose: str, device: torch.device | str | None = None) -> torch.Generator:
        """The random numbers of one purpose in this generation, the same for every arm."""
        seed = stream(self.seed, f"generation {self.generation} {purpose}")
        return torch.Generator(device or self.device).manual_seed(seed)

    def step(self, log: Callable[[Decided], None] | None = None) -> None:
        """Play one generation and learn from it; ``log`` receives each block of decisions."""
        if self.generation:
            self.world = self.world.drifted(self.generation, self.generator("drift", "cpu"))
        record = OnlineSums(self.scenario)
        blocks = []
        for decided in self._decisions():
            record.add(decided)
            blocks.append(decided.rows)
            if log is not None:
                log(decided)
        self.last = LoggedGeneration.cat(blocks)
        self.rows.append(self.last)
        found = record.result()
        if self.measures is None:
            self._learn()
        else:
            deployed = self.measures.policy(self)
            self._learn()
            found |= self.measures.of_model(self, deployed) | self._trace()
        for name, value in found.items():
            self.records.setdefault(name, []).append(np.asarray(value))
        self.generation += 1

    def policy(self, state: PaymentState, mask: Tensor) -> Tensor:
        """The deployed probabilities of the actions ``(n, K)``: uniform before the first oracle."""
        if not self.oracle:
            return uniform(mask, self.world.dtype)
        return self.arm.exploration.probabilities(self.scores(state), mask, self.learned)

    def scores(self, context: PaymentContext) -> Tensor:
        """Predicted approval ``(n, K)``, or ``(members, n, K)``."""
        found = [fitted.predict_all(context) for fitted in self.oracle]
        return found[0] if len(found) == 1 else torch.stack(found)

    def _decisions(self) -> Iterator[Decided]:
        generators = {purpose: self.generator(purpose) for purpose in ("contexts", "action", "coin", "reward")}
        for start in range(0, self.scenario.payments, BLOCK):
            yield self._decide(min(BLOCK, self.scenario.payments - start), generators)

    def _decide(self, count: int, generators: dict[str, torch.Generator]) -> Decided:
        def luck(purpose: str) -> Tensor:
            return torch.rand(count, generator=generators[purpose], dtype=self.world.dtype, device=self.device)

        state = self.world.reset(count, generators["contexts"])
        mask = dense_mask(state.allowed, state.forced, self.scenario.sizes.flags)
        probabilities = self.policy(state, mask)
        if self.arm.exploration.rule == "epsilon_slice" and self.oracle:
            epsilon, coins = self.arm.exploration.epsilon, luck("coin")
            # The best action has the largest probability too: the payments need not be scored twice.
            drawn = sample_epsilon_slice(probabilities, mask, epsilon, coins, luck("action"))
            action, propensity, coin = drawn.action, drawn.propensity, drawn.explored
        else:
            choice = sample_actions(probabilities, mask, luck("action"))
            action, propensity, coin = choice.action, choice.propensity, torch.ones_like(mask[:, 0])
        answer = self.world.step(state, action, self.world.noise(count, generators["reward"]))
        arrival = self.generation * self.scenario.duration + state.time + answer.info["delay"]
        rows = LoggedGeneration(state, action, propensity, coin, answer.reward, arrival)
        return Decided(probabilities, mask, self.world.probabilities(state), rows)

    def _learn(self) -> None:
        """Fit the oracle to what has matured by now; keep the old one where that is impossible."""
        if isinstance(self.arm.window, int):
            self.rows = self.rows[-self.arm.window :]
        total = (self.generation + 1) * self.scenario.payments
        falcon = self.arm.falcon
        if falcon is not None:
            epoch = falcon.schedule().epoch(total + 1)
            if epoch == self.epoch:
                return
        rows, fresh = self.matured(), self._fresh()
        try:
            self.oracle = self.fit(rows)
        except OracleNotFitted as reason:
            self.notes.append(f"generation {self.generation}: {reason}; the model before was kept")
            return
        if falcon is not None:
            self.epoch = epoch
            if falcon.previous_epoch:
                self.rows = self._late()
        # A row counts once, however many generations it is learned from.
        every = self.arm.window == "all" and not (falcon is not None and falcon.previous_epoch)
        examples = len(rows) if every else self.learned.examples + (len(rows) if falcon is not None else fresh)
        counts = torch.bincount(rows.action, minlength=self.scenario.sizes.actions)
        self.learned = Learned(examples, counts, self._groups(len(rows)))

    def _end(self) -> float:
        """Hours since the start of generation 0 when this generation ends."""
        return (self.generation + 1) * self.scenario.duration

    def _fresh(self) -> int:
        """Rows of this generation that may teach and have their answer."""
        return int(((self.last.arrival <= self._end()) & self.last.coin).sum())

    def _late(self) -> list[LoggedGeneration]:
        """What has no answer yet, for the next epoch."""
        kept = LoggedGeneration.cat(self.rows)
        late = kept.arrival > self._end()
        tensors = {name: x[late] for name, x in kept.tensors().items()}
        return [LoggedGeneration.of(tensors)] if bool(late.any()) else []

    def _trace(self) -> dict[str, float]:
        """How an oracle that never stops learning did on the rows before it learned from them."""
        trace = getattr(self.oracle[0], "trace", None) if self.oracle else None
        if trace is None:
            return {"online_log_loss": np.nan, "learning_rate": np.nan}
        return {"online_log_loss": float(trace.log_loss.mean()), "learning_rate": float(trace.learning_rate.mean())}

    def _groups(self, rows: int) -> Tensor | None:
        """The groups of actions that the new oracle suggests, from its predictions on recent payments."""
        state = self.last.state
        mask = dense_mask(state.allowed, state.forced, self.scenario.sizes.flags)
        return grouping_of(self.arm.exploration, self.scores, state, mask, rows)

    def matured(self) -> Rows:
        """The rows of the window whose answers have arrived by the end of this generation."""
        kept = LoggedGeneration.cat(self.rows)
        known = (kept.arrival <= self._end()) & kept.coin
        weight = None
        if self.arm.weights == "inverse_propensity":
            weight = (1 / kept.propensity[known]).clamp(max=self.arm.cap)
            weight = weight / weight.mean()  # so that the ridge keeps its strength
        return Rows(kept.state.take(known), kept.action[known], kept.reward[known], weight)

    def fit(self, rows: Rows) -> list[Oracle[Any]]:
        """The oracle of these rows; several for ``thompson_bootstrap``.

        Raises:
            OracleNotFitted: no model came of them.
        """
        arm = self.arm
        seed = stream(self.seed, f"generation {self.generation} fit")
        if arm.exploration.rule != "thompson_bootstrap":
            return [self._fitted(rows, seed, self.oracle[0] if self.oracle else None)]
        generator = torch.Generator().manual_seed(seed)
        members = []
        for member in range(arm.exploration.members):
            draws = torch.poisson(torch.ones(len(rows)), generator=generator).to(rows.reward)
            weight = draws if rows.weight is None else rows.weight * draws
            members.append(self._fitted(replace(rows, weight=weight), seed + member))
        return members

    def _fitted(self, rows: Rows, seed: int, previous: Oracle[Any] | None = None) -> Oracle[Any]:
        sizes, device = self.scenario.sizes, self.device
        return fit_oracle(self.arm.oracle, self.arm.imbalance, rows, sizes, seed=seed, device=device, previous=previous)

    def result(self) -> xr.Dataset:
        """Every series, along ``generation``."""
        data = {name: SERIES[name].variable(np.stack(values)) for name, values in self.records.items()}
        coords = {"generation": np.arange(self.generation), "segment": list(SEGMENTS)}
        return xr.Dataset(data, coords).assign_attrs(notes=json.dumps(self.notes))

    def save(self, folder: Path) -> None:
        """Write all that the next generation depends on, whole or not at all."""
        fresh = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        tensors = {f"{i}.{name}": x for i, rows in enumerate(self.rows) for name, x in rows.tensors().items()}
        tensors |= {f"world.{name}": x for name, x in self._drifting().items()}
        learned = {"rows": self.learned.rows, "groups": self.learned.groups}
        tensors |= {f"learned.{name}": x for name, x in learned.items() if x is not None}
        records = {name: np.stack(values) for name, values in self.records.items()}
        tensors |= {f"record.{name}": torch.from_numpy(values) for name, values in records.items()}
        whole = {name: x.contiguous().cpu().clone() for name, x in tensors.items()}
        files.write(fresh / "state.safetensors", safetensors.torch.save(whole))
        for member, fitted in enumerate(self.oracle):
            fitted.save(fresh / f"oracle_{member}")
        counts = {name: getattr(self, name) for name in ("generation", "epoch", "notes")}
        counts |= {"examples": self.learned.examples, "oracles": len(self.oracle)}
        files.write_json(fresh / STATE, counts)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)

    def restore(self, folder: Path) -> None:
        """Go on from what ``save`` wrote; where nothing is whole, start anew."""
        # Killed between the two steps of a replacement, the new state is whole under its other name, and what is left
        # of the old one may be half removed.
        fresh = folder.with_name(f"{folder.name}.new")
        if (fresh / STATE).exists():
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
        if not (folder / STATE).exists():
            return
        state = files.read_json(folder / STATE)
        loaded = safetensors.torch.load_file(folder / "state.safetensors", device=str(self.device))
        self.generation, self.epoch, self.notes = state["generation"], state["epoch"], state["notes"]
        self.oracle = [load_oracle(folder / f"oracle_{m}", self.device) for m in range(state["oracles"])]
        groups: dict[str, dict[str, Tensor]] = {}
        for name, x in loaded.items():
            first, _, rest = name.partition(".")
            groups.setdefault(first, {})[rest] = x
        self.records = {name: list(x.cpu().numpy()) for name, x in groups.pop("record", {}).items()}
        drifting = groups.pop("world")
        self.learned = Learned(state["examples"], **groups.pop("learned", {}))
        self.rows = [LoggedGeneration.of(groups[key]) for key in sorted(groups, key=int)]
        portfolio = self.world.portfolio.with_effects(drifting["issuer"], drifting["issuer_flag"])
        self.world = replace(
            self.world, generation=max(0, self.generation - 1), portfolio=portfolio, down=drifting.get("down")
        )

    def _drifting(self) -> dict[str, Tensor]:
        found = {"issuer": self.world.portfolio.issuer, "issuer_flag": self.world.portfolio.issuer_flag}
        return found if self.world.down is None else found | {"down": self.world.down}


def play(
    scenario: Scenario,
    arm: Arm,
    seed: int,
    *,
    device: torch.device | str = "cpu",
    measure: bool = True,
    checkpoint: Path | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> xr.Dataset:
    """Play all generations of an arm in one world.

    Args:
        scenario: the worlds.
        arm: with its tuned number set.
        seed: of the world.
        device: where the decisions are computed.
        measure: also measure every model on the evaluation set.
        checkpoint: folder that survives a kill; what lies there is gone on from.
        progress: called with the share that is done and a message.

    Returns:
        Every series along ``generation``; see ``docs/payments.md``.
    """
    loop = GenerationLoop(scenario, arm, seed, device, measure=measure)
    folder = None if checkpoint is None else checkpoint / "loop"
    if folder is not None:
        loop.restore(folder)
    saved = time.monotonic()
    while loop.generation < scenario.generations:
        loop.step()
        if progress is not None:
            progress(loop.generation / scenario.generations, f"generation {loop.generation}")
        if folder is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
            loop.save(folder)
            saved = time.monotonic()
    return loop.result()
