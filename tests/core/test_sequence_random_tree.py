import pytest
import torch

from core.errors import InputError
from core.sequence.rollouts import Rollouts
from core.sequence.tasks.random_tree import RandomTree, TabularPolicy


@pytest.mark.parametrize(("depth", "branching"), [(1, 2), (4, 2), (3, 3)])
def test_the_soft_optimal_policy_tilts_the_reference_by_the_exponential_of_the_reward(depth, branching):
    tree, beta = RandomTree(depth, branching, seed=3), 0.1
    log_policy, value = tree.soft_optimal(beta)
    leaves = tree.leaves()
    tilted = leaves.log_prob_ref.sum(1) + leaves.reward / beta
    assert torch.allclose(value[0], beta * tilted.logsumexp(0), atol=1e-14)
    found = TabularPolicy(tree, log_policy).score(leaves).log_prob.sum(1)
    assert torch.allclose(found, tilted.log_softmax(0), atol=1e-12)
    assert torch.allclose(found.exp().sum(), torch.ones((), dtype=torch.float64))


def test_no_policy_near_the_soft_optimal_one_is_better():
    tree, beta = RandomTree(seed=1), 0.3
    policy = TabularPolicy(tree, tree.soft_optimal(beta)[0])
    leaves = tree.leaves()
    log_prob = policy.score(leaves).log_prob.sum(1)
    goal = (log_prob.exp() * (leaves.reward - beta * (log_prob - leaves.log_prob_ref.sum(1)))).sum()
    assert torch.allclose(goal, tree.soft_optimal(beta)[1][0], atol=1e-14)
    goal.backward()
    assert policy.logits.grad.abs().max() < 1e-15


def test_a_hot_temperature_or_equal_rewards_leave_the_reference():
    tree = RandomTree(seed=2)
    gaps = [(tree.soft_optimal(beta)[0] - tree.reference).abs().max() for beta in (1e3, 1e4)]
    assert gaps[0] < 1e-3
    assert gaps[1] / gaps[0] == pytest.approx(0.1, rel=1e-3)
    log_policy, value = RandomTree(rewarded=1.0, seed=2).soft_optimal(0.1)
    assert torch.allclose(log_policy, tree.reference, atol=1e-14)
    assert torch.allclose(value, torch.ones_like(value), atol=1e-14)


def test_samples_have_the_log_probabilities_and_frequencies_of_the_policy():
    tree = RandomTree(3, 3)
    policy, n = TabularPolicy(tree), 20000
    generator = torch.Generator().manual_seed(0)
    sampled = Rollouts(tree, prompts=2, group=n).draw(policy, 0, generator).sampled
    assert torch.allclose(policy.score(sampled).log_prob, sampled.log_prob_old.double(), atol=1e-6)
    leaf = (sampled.tokens * torch.tensor([9, 3, 1])).sum(1)
    assert torch.equal(sampled.reward, tree.leaf_reward[leaf])
    p = tree.leaves().log_prob_ref.sum(1).exp()
    seen = torch.bincount(leaf, minlength=27) / (2 * n)
    assert ((seen - p).abs() < 5 * (p * (1 - p) / (2 * n)).sqrt() + 1e-4).all()


def test_scores_offer_entropy_logits_and_the_value_before_each_token():
    tree = RandomTree(2, 2)
    policy = TabularPolicy(tree)
    policy.value.data = torch.arange(3.0, dtype=torch.float64)
    scores = policy.score(tree.leaves(), 2.0, frozenset({"entropy", "logits", "value"}))
    assert scores.value.tolist() == [[0, 1], [0, 1], [0, 2], [0, 2]]
    distribution = torch.distributions.Categorical(logits=policy.logits[[0, 2]] / 2)
    assert torch.allclose(scores.entropy[3], distribution.entropy())
    assert torch.allclose(scores.logits[3].log_softmax(-1), distribution.logits)
    assert policy.score(tree.leaves()).value is None


def test_sequences_that_were_cut_have_no_reward():
    tree = RandomTree(3, 2, rewarded=1.0)
    leaves = tree.leaves()
    assert tree.reward(leaves, None).tolist() == [1.0] * 8
    mask = leaves.mask.clone()
    mask[5, 2] = False
    assert tree.reward(leaves.with_(mask=mask), None).tolist() == [1.0] * 5 + [0.0] + [1.0] * 2
    assert tree.reward(leaves.pad_to(5), None).tolist() == [1.0] * 8
    assert tree.reward(leaves.with_(tokens=leaves.tokens[:, :2], mask=leaves.mask[:, :2]), None).tolist() == [0.0] * 8


@pytest.mark.parametrize("share", [0.01, 0.25, 1.0])
def test_the_share_of_rewarded_leaves_is_the_one_asked_for(share):
    tree = RandomTree(4, 2, rewarded=share)
    assert tree.leaf_reward.sum() == max(1, round(16 * share))


def test_trees_that_cannot_be_are_refused():
    for wrong in ({"depth": 0}, {"branching": 1}, {"rewarded": 0.0}, {"rewarded": 1.5}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            RandomTree(**wrong)
    with pytest.raises(InputError, match="beta = 0"):
        RandomTree().soft_optimal(0)
