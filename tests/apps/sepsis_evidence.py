"""Results of a sepsis study that are made up, with effects that are known."""

import numpy as np
import xarray as xr

from apps.sepsis.evidence import Evidence
from apps.sepsis.settings import Arm
from simulators.sepsis.features import ACTIONS, STATE

SETTINGS = ("alone", "itself", "refuted", "confused")
ARMS = (
    Arm(lam=0),
    Arm(lam=0.25),
    Arm(lam=0.5),
    Arm(lam=0.5, reward="state"),
    Arm(learner="conservative", lam=0),
    Arm(learner="conservative", lam=0.5),
)
PATIENTS, STEPS, SUBJECTS = 60, 5, 80
PATIENT = np.repeat(np.arange(PATIENTS), STEPS)


def signs(rng, share):
    """1 with so much probability, else -1, of each test step."""
    return np.where(rng.random(len(PATIENT)) < share, 1.0, -1.0).astype(np.float32)


def prepared(seed, *, random=0.6, full=0.8, physician=0.8, simulated=True):
    rng = np.random.default_rng([seed, 1])
    pairs, subjects = len(PATIENT), np.random.default_rng(0).normal(0, 0.05, SUBJECTS)
    data = {
        "confidence": ("bin", np.linspace(0.55, 0.95, 5)),
        "accuracy": ("bin", np.linspace(0.5, 0.9, 5)),
        "count": ("bin", np.full(5, pairs // 5)),
        "random": ("pair", rng.binomial(5, random, pairs) / 5),
        "full": ("pair", (rng.random(pairs) < full).astype(np.float32)),
        "patient": ("pair", PATIENT),
        "cloned": ("step", rng.random(pairs) < 0.4),
        "step_patient": ("step", PATIENT),
        "actions": ("action", rng.integers(1, 50, ACTIONS)),
    }
    if simulated:
        data |= {f"{who}_survival": ("subject", physician + subjects) for who in ("physician", "clinician")}
        data["ceiling"] = ("pair", rng.random(pairs) < 0.9)
    return xr.Dataset(data, attrs={"calibration_error": 0.05})


def debates(seed, accuracy=None, *, learned=()):
    """Accuracies by (strategy, setting); those not given are 0.6."""
    rng = np.random.default_rng([seed, 2])
    names = ["random", "first_order", "precommit_first_order", "lookahead", *learned]
    correct = np.full((len(names), len(SETTINGS), len(PATIENT)), np.nan, np.float32)
    for i, name in enumerate(names):
        for j, setting in enumerate(SETTINGS):
            absent = ("precommit" in name and setting == "itself") or (setting == "confused" and name not in learned)
            if not absent:
                share = (accuracy or {}).get((name, setting), 0.6)
                correct[i, j] = rng.random(len(PATIENT)) < share
    overlap = rng.integers(0, 7, (len(names), len(PATIENT))) / 6
    overlap[["precommit" in name for name in names]] = np.nan
    shown = rng.integers(0, 9, (len(STATE), ACTIONS)).astype(float)
    shown[:, 24] = 0
    return xr.Dataset(
        {
            "correct": (("strategy", "setting", "pair"), correct),
            "overlap": (("strategy", "pair"), overlap),
            "patient": ("pair", PATIENT),
            "shown": (("feature", "action"), shown),
        },
        {"strategy": names, "setting": list(SETTINGS), "feature": list(STATE), "action": np.arange(ACTIONS)},
    )


def trained(seed, arm, *, survival=0.8, preferred=0.5, by_full=0.5, differs=0.8, simulated=True):
    """A policy that differs from that of lambda 0 (action 0 everywhere) at a share of the steps."""
    place = ARMS.index(arm) if arm in ARMS else 99
    rng, luck = np.random.default_rng([seed, 3, place]), np.random.default_rng(0)
    baseline = arm.lam == 0
    differ = np.zeros(len(PATIENT), bool) if baseline else rng.random(len(PATIENT)) < differs
    data = {
        "action": ("step", np.where(differ, 6, 0)),
        "patient": ("step", PATIENT),
        "aligned": ("pair", (rng.random(len(PATIENT)) < 0.7).astype(np.float32)),
        "pair_patient": ("pair", PATIENT),
    }
    for drug, bins in (("fluid", 7), ("vasopressor", 5)):
        about = {"units": "mL", "long_name": f"{drug}: clinician less policy"}
        data[f"excess_{drug}"] = (f"bin_{drug}", np.linspace(-1, 1, bins), about)
        data[f"patients_{drug}"] = (f"bin_{drug}", np.arange(bins) * 3)
        data[f"deaths_{drug}"] = (f"bin_{drug}", np.arange(bins))
    if not baseline:
        verdicts = (("by_debate", preferred), ("by_full_judge", by_full))
        data |= {by: ("step", np.where(differ, signs(rng, share), 0)) for by, share in verdicts}
    if simulated:
        # Subjects are the same for all policies: what they have in common is taken out.
        lived = survival + luck.normal(0, 0.05, SUBJECTS) + rng.normal(0, 0.01, SUBJECTS)
        data["survival"] = ("subject", lived)
        data |= {"updates": ("look", [10, 20, 30]), "survival_so_far": ("look", survival + rng.normal(0, 0.05, 3))}
    return xr.Dataset(data, attrs={"clipped_share": 0.1})


def reference(seed, *, cloned=0.5, logged=0.5):
    rng = np.random.default_rng([seed, 4])
    both = np.stack([signs(rng, cloned), signs(rng, logged)])
    data = dict.fromkeys(("by_debate", "by_full_judge"), (("who", "step"), both))
    data["action"] = (("who", "step"), np.full(both.shape, 7))
    return xr.Dataset(data, {"who": ["clinician", "logged"]}).assign(patient=("step", PATIENT))


def evidence(seeds=3, arms=ARMS, *, effects=None, accuracy=None, cloned=0.5, random=0.6, simulated=True, learned=()):
    """All runs of a study; ``effects`` are those of ``trained`` by (learner, arm)."""
    effects = effects or {}
    names = {arm: (arm.learner, arm.name) for arm in arms}
    return Evidence(
        prepared={s: prepared(s, random=random, simulated=simulated) for s in range(seeds)},
        debates={s: debates(s, accuracy, learned=learned if s == 0 else ()) for s in range(seeds)},
        trained={
            name: {s: trained(s, arm, simulated=simulated, **effects.get(name, {})) for s in range(seeds)}
            for arm, name in names.items()
        },
        reference={x: {s: reference(s, cloned=cloned) for s in range(seeds)} for x in {arm.learner for arm in arms}},
    )
