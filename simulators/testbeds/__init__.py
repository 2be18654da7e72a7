"""Small worlds whose optimum is known, on which learners are judged."""

from simulators.testbeds.lqr import LQRNoise, LQRState, ScalarLQR

__all__ = ["LQRNoise", "LQRState", "ScalarLQR"]
