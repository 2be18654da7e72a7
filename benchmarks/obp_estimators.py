"""obp's estimators, one process that answers on its standard output; it runs in obp's environment, without ours.

    python obp_estimators.py FOLDER    # of action.npy, reward.npy, propensity.npy, target.npy and qhat.npy

Each line of its input is ``values N`` or ``intervals N B``; the answer, a line of JSON, has the CPU seconds and what
obp finds in the first N rows, by our names of the estimators.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from obp import ope

LIMIT = 5.0
ESTIMATORS = {
    "ips": ope.InverseProbabilityWeighting(),
    "snips": ope.SelfNormalizedInverseProbabilityWeighting(),
    "dm": ope.DirectMethod(),
    "dr": ope.DoublyRobust(),
    "sndr": ope.SelfNormalizedDoublyRobust(),
    "switch_dr": ope.SwitchDoublyRobust(lambda_=LIMIT),
    "dros": ope.DoublyRobustWithShrinkage(lambda_=LIMIT),
}


def main() -> None:
    folder = Path(sys.argv[1])
    names = ("action", "reward", "propensity", "target", "qhat")
    action, reward, propensity, target, qhat = (np.load(folder / f"{name}.npy") for name in names)
    for line in sys.stdin:
        task, n, *replicates = line.split()
        rows = slice(int(n))
        log = {
            "action": action[rows],
            "reward": reward[rows],
            "pscore": propensity[rows],
            "action_dist": target[rows, :, None],
            "estimated_rewards_by_reg_model": qhat[rows, :, None],
            "position": np.zeros(int(n), dtype=int),
        }
        started = time.process_time()
        if task == "values":
            found = {name: float(e.estimate_policy_value(**log)) for name, e in ESTIMATORS.items()}
        else:
            ends = {
                name: e.estimate_interval(**log, n_bootstrap_samples=int(replicates[0]), random_state=0)
                for name, e in ESTIMATORS.items()
            }
            found = {name: list(end.values()) for name, end in ends.items()}
        print(json.dumps({"seconds": time.process_time() - started, "found": found}), flush=True)


if __name__ == "__main__":
    main()
