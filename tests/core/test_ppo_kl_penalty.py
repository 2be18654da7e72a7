import pytest
import torch

from core.errors import InputError
from core.rl import PPO, KLPenaltyPPO
from tests.core.test_ppo import build, in_order, one_thread, parameters  # noqa: F401 (fixtures)
from tests.core.worlds import Corridor

STEPS = 32 * 64


def test_without_penalty_and_cap_it_is_ppo():
    # torch.square and mse_loss give the same numbers, so equality is exact.
    plain = build(PPO).learn(2 * STEPS)
    variant = build(KLPenaltyPPO, kl_coef=0.0, vf_loss_clip=float("inf")).learn(2 * STEPS)
    assert torch.equal(parameters(plain), parameters(variant))


@pytest.mark.parametrize("simulator", [None, Corridor()], ids=["gaussian", "categorical"])
def test_the_penalty_is_the_exact_divergence(simulator, monkeypatch):
    learner = build(KLPenaltyPPO, simulator, kl_coef=2.0, n_epochs=2, batch_size=STEPS, learning_rate=1e-2)
    seen = []
    penalised = KLPenaltyPPO.policy_loss

    def watch(self, batch):
        loss = penalised(self, batch)
        old = self._old_policy.get_distribution(batch.samples.observations).distribution
        new = self.policy.get_distribution(batch.samples.observations).distribution
        if simulator is None:
            ratio = (old.stddev / new.stddev).square()
            shift = ((old.mean - new.mean) / new.stddev).square()
            divergence = (0.5 * (ratio - 1 - ratio.log() + shift)).sum(1).mean()
        else:
            divergence = (old.probs * (old.probs / new.probs).log()).sum(1).mean()
        seen.append(((loss - PPO.policy_loss(self, batch)).item(), 2.0 * divergence.item()))
        return loss

    monkeypatch.setattr(KLPenaltyPPO, "policy_loss", watch)
    learner.learn(STEPS)
    assert seen[0][0] == pytest.approx(0, abs=1e-6)  # the first step starts at the old policy
    assert seen[1][1] > 1e-4
    assert seen[1][0] == pytest.approx(seen[1][1], rel=1e-2)


def test_the_coefficient_steers_towards_the_target():
    assert build(KLPenaltyPPO, kl_target=1e-6).learn(STEPS).kl_coef == pytest.approx(0.3)
    assert build(KLPenaltyPPO, kl_target=1e6).learn(STEPS).kl_coef == pytest.approx(0.1)
    loose, tight = (build(KLPenaltyPPO, kl_coef=c, learning_rate=3e-3).learn(STEPS) for c in (0.0, 20.0))
    divergence = [float(torch.stack(learner._divergences).mean()) for learner in (loose, tight)]
    assert divergence[1] < 0.5 * divergence[0]


def test_the_value_error_is_capped():
    learner = build(KLPenaltyPPO, vf_loss_clip=0.01).learn(STEPS)
    assert learner.logger.name_to_value["train/value_loss"] <= 0.01


@pytest.mark.parametrize("option", [{"kl_coef": -0.1}, {"kl_target": 0.0}, {"vf_loss_clip": 0.0}])
def test_impossible_settings_are_refused(option):
    with pytest.raises(InputError, match=next(iter(option))):
        build(KLPenaltyPPO, **option)
