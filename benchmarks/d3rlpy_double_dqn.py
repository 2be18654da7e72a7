"""d3rlpy's DoubleDQN as a process that trains when it is asked to, run by the Python of an environment of its own.

Reads lines ``WORK UPDATES`` and answers each with the CPU seconds that it took; WORK is ``fit``, which is all that a
user of d3rlpy waits for, or ``update``, which leaves the drawing of batches out.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import d3rlpy
import numpy as np
import torch
from d3rlpy.logging import NoopAdapterFactory, set_log_context
from d3rlpy.models import VectorEncoderFactory


def main() -> None:
    """Answer until the input ends."""
    torch.set_num_threads(1)
    size = json.loads(sys.argv[1])
    set_log_context()
    generator = np.random.default_rng(0)
    steps = size["episodes"] * size["length"]
    ends = (np.arange(steps) % size["length"] == size["length"] - 1).astype(np.float32)
    data = d3rlpy.dataset.MDPDataset(
        observations=generator.normal(size=(steps, size["features"])).astype(np.float32),
        actions=generator.integers(size["actions"], size=steps),
        rewards=(ends * generator.choice([-15.0, 15.0], steps)).astype(np.float32),
        terminals=ends,
        action_space=d3rlpy.constants.ActionSpace.DISCRETE,
        action_size=size["actions"],
    )
    model = d3rlpy.algos.DoubleDQNConfig(
        batch_size=size["batch"],
        learning_rate=1e-4,
        gamma=0.99,
        encoder_factory=VectorEncoderFactory(size["hidden"], activation="relu"),
    ).create(device="cpu:0")
    model.build_with_dataset(data)
    model.update(data.sample_transition_batch(size["batch"]))
    print("ready", flush=True)
    for line in sys.stdin:
        work, updates = line.split()
        print(seconds(model, data, work, int(updates), size["batch"]), flush=True)


def seconds(model: Any, data: Any, work: str, updates: int, batch: int) -> float:
    """CPU seconds of so many updates."""
    if work == "fit":
        began = time.process_time()
        options = {"show_progress": False, "save_interval": 10**9, "logger_adapter": NoopAdapterFactory()}
        model.fit(data, n_steps=updates, n_steps_per_epoch=updates, **options)
    else:
        batches = [data.sample_transition_batch(batch) for _ in range(updates)]
        began = time.process_time()
        for some in batches:
            model.update(some)
    return time.process_time() - began


if __name__ == "__main__":
    main()
