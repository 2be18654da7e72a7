import pytest
import torch
from gymnasium import spaces

from core.errors import InputError
from core.offline import ConservativeDQN, OfflineDataset, OfflineDQN
from core.offline.losses import conservative_gap
from tests.core.offline_logs import Tabular
from tests.core.test_offline_dqn import LOG, PUBLISHED, build
from tests.core.test_ppo import one_thread, parameters  # noqa: F401 (one_thread is a fixture)


@pytest.mark.parametrize("options", [{}, {"prioritized": True, "policy_kwargs": PUBLISHED}])
def test_without_its_term_it_is_the_offline_dqn(options):
    conservative = build(kind=ConservativeDQN, alpha=0.0, **options).fit(150)
    assert torch.equal(parameters(conservative), parameters(build(kind=OfflineDQN, **options).fit(150)))


def test_the_gap_is_the_published_one():
    q_values, actions = torch.randn(50, 7) * 3, torch.randint(7, (50, 1))
    q_data = q_values.gather(1, actions)
    by_hand = (q_values.exp().sum(1).log() - q_data.squeeze(1)).mean()
    torch.testing.assert_close(conservative_gap(q_values, q_data), by_hand)
    assert float(conservative_gap(q_values, q_data.squeeze(1))) > 0
    cold = conservative_gap(q_values, q_data, 1e-4)
    torch.testing.assert_close(cold, (q_values.amax(1) - q_data.squeeze(1)).mean(), atol=1e-3, rtol=0)
    # Its gradient takes from all actions as softmax says, and gives to the logged one.
    q_values.requires_grad_()
    conservative_gap(q_values, q_values.gather(1, actions)).backward()
    expected = (torch.softmax(q_values.detach(), 1) - torch.nn.functional.one_hot(actions.squeeze(1), 7)) / 50
    torch.testing.assert_close(q_values.grad, expected)


def test_a_table_meets_the_conditions_of_its_optimum():
    # One state, one step: 2 b(a) (Q(a) - r(a)) + alpha (softmax(Q)(a) - b(a)) = 0 for the logged shares b.
    shares = torch.tensor([0.5, 0.25, 0.125, 0.125])
    rewards = torch.tensor([1.0, 3.0, -1.0, 2.0])
    actions = torch.arange(4).repeat_interleave((shares * 32).long())
    n, once = len(actions), torch.ones(len(actions), dtype=torch.bool)
    data = OfflineDataset(
        observations=torch.ones(n, 1),
        actions=actions,
        rewards=rewards[actions],
        next_observations=torch.ones(n, 1),
        terminated=once,
        truncated=~once,
        episode=torch.arange(n),
        step=torch.zeros(n, dtype=torch.int64),
        observation_space=spaces.Box(0, 1, (1,)),
        action_space=spaces.Discrete(4),
    )
    options = {"n_steps": 1, "batch_size": 4096, "learning_rate": 0.02, "policy_kwargs": {"net_arch": []}}
    for alpha in (0.0, 0.5, 2.0):
        model = ConservativeDQN(data, alpha=alpha, q_bound=None, **options).fit(400)
        q = model.q_values(torch.ones(1, 1))[0]
        residual = 2 * shares * (q - rewards) + alpha * (torch.softmax(q, 0) - shares)
        torch.testing.assert_close(residual, torch.zeros(4), atol=0.02, rtol=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_values_fall_with_alpha(seed):
    # With the soft maximum and a greedy policy the mean over the data need fall, not every state (CQL, theorem 3.2).
    world = Tabular.of(seed)
    data = world.log(300, seed)
    options = {"n_steps": 1, "gamma": 0.9, "learning_rate": 0.02, "tau": 0.1, "q_bound": None}
    means, gaps = [], []
    for alpha in (0.0, 0.5, 5.0):
        model = ConservativeDQN(data, alpha=alpha, policy_kwargs={"net_arch": []}, **options).fit(500)
        q_values = model.q_values(data.observations)
        means.append(float(q_values.amax(1).mean()))
        logged = q_values.gather(1, data.actions[:, None])
        gaps.append(float((q_values.logsumexp(1) - logged.squeeze(1)).mean()))
    assert means == sorted(means, reverse=True)
    assert gaps == sorted(gaps, reverse=True)
    assert means[0] - means[2] > 0.3


def test_alpha_is_saved_and_checked(tmp_path):
    model = build(kind=ConservativeDQN, alpha=0.7).fit(10)
    model.save(tmp_path / "model")
    loaded = OfflineDQN.load(tmp_path / "model", device="cpu")
    assert type(loaded) is ConservativeDQN
    assert loaded.alpha == 0.7
    assert torch.equal(loaded.q_values(LOG.observations), model.q_values(LOG.observations))
    with pytest.raises(InputError, match=r"alpha: -1; allowed: at least 0"):
        build(kind=ConservativeDQN, alpha=-1)
