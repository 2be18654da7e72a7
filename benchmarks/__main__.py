"""Run the benchmarks that are named, or all of them."""

import sys
from importlib import import_module

import torch

BENCHMARKS = (
    "simulator",
    "grid_search",
    "ppo_rollout",
    "ppo_time_to_return",
    "lipreading",
    "mri",
    "payments",
    "payments_simulator",
    "payments_evaluation",
    "payments_service",
    "turbulence",
    "chaos_integration",
    "chaos_invariants",
    "chaos_reservoir",
    "chaos_training",
    "sepsis",
    "sepsis_dqn",
    "sepsis_simulator",
    "crs",
    "sequence",
)


def main() -> None:
    """Run the benchmarks named on the command line."""
    torch.set_num_threads(1)
    unknown = set(sys.argv[1:]) - set(BENCHMARKS)
    if unknown:
        sys.exit(f"unknown benchmark {', '.join(sorted(unknown))}; there are: {', '.join(BENCHMARKS)}")
    for name in sys.argv[1:] or BENCHMARKS:
        print(f"\n{name}", flush=True)
        import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
