"""A policy learned from a joined log, ready to be evaluated on another log and to be served."""

from __future__ import annotations

from pathlib import Path

import torch

from apps.payments.evaluation.evidence import HELD_OUT, PaymentsLog, fold_of
from apps.payments.exploration import Exploration, Learned, grouping_of
from apps.payments.oracles import ImbalanceSettings, OracleNotFitted, OracleSettings, Rows, fit_oracle
from apps.payments.policy import Policy
from core.errors import InputError


def train_policy(
    log: PaymentsLog,
    out: Path,
    exploration: Exploration,
    oracle: OracleSettings,
    *,
    imbalance: ImbalanceSettings | None = None,
    policy_id: str | None = None,
    rows: int = 1_000_000,
    window: int | None = None,
    hold_out: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[Policy, int]:
    """Fit an oracle to the rows with a reward and store the policy of the next generation.

    Args:
        log: joined.
        out: folder of the policy.
        exploration: the rule; ``thompson_bootstrap`` is for simulations alone.
        oracle: which regression.
        imbalance: what is done about the rare declines.
        policy_id: name; the random numbers of its decisions are keyed by it. The folder's name if None.
        rows: learn from about so many, chosen by the hash of their transactions.
        window: learn from the last so many generations; from all if None.
        hold_out: leave a third of the transactions out, on which the policy can then be judged.
        seed: of the fit.
        device: where a network is trained.

    Returns:
        The policy and the number of rows that it learned from.

    Raises:
        InputError: rows that cannot be learned from, an impossible rule, or a folder that is not empty.
    """
    if exploration.rule == "thompson_bootstrap":
        raise InputError("--rule thompson_bootstrap: is for simulations; a served policy has one oracle")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: exists and is not empty; a policy is never written over another")
    sample = log.sample(rows, seed)
    last = int(sample.generation.max())
    if hold_out:
        sample = sample.take(fold_of(sample) != HELD_OUT)
    if exploration.rule == "epsilon_slice":
        sample = sample.take(sample.coin)
    if window is not None:
        sample = sample.take(sample.generation > last - window)
    learned_from = Rows(sample.context, sample.action, sample.reward)
    try:
        fitted = fit_oracle(oracle, imbalance or ImbalanceSettings(), learned_from, log.sizes, seed=seed, device=device)
    except OracleNotFitted as reason:
        raise InputError(f"{log.path}: {reason}") from reason
    groups = grouping_of(exploration, fitted.predict_all, sample.context, sample.mask, len(sample))
    counts = torch.bincount(sample.action, minlength=log.actions)
    learned = Learned(len(sample), counts, groups)
    policy = Policy(
        policy_id or out.name,
        last + 1,
        fitted,
        log.sizes,
        exploration,
        learned,
        learned_from=log.checksum(),
        held_out=hold_out,
    )
    return policy.save(out), len(sample)
