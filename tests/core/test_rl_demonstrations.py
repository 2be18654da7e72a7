"""Learning from a demonstrator: the losses by hand, the rows of a batch, pretraining, resuming and refusals."""

from dataclasses import replace

import pytest
import torch

from core.errors import InputError
from core.rl import DQN, ResumeCallback
from core.rl.demonstrations import DemonstrationDQN, Demonstrations, MixedBatch, margin_loss, policy_divergence
from core.simulation import tree
from tests.core.test_dqn import EVERYTHING, ROWS, Seen, build
from tests.core.test_ppo import one_thread, parameters  # noqa: F401 (one_thread is a fixture)
from tests.core.test_ppo_files import Stop

CELLS = 4
LEFT, RIGHT, STAY = 0, 1, 2


def shown(cell):
    """What the learner sees of the cells in ``Seen``."""
    mask = torch.ones(len(cell), 3, dtype=torch.bool)
    mask[:, LEFT] = cell > 0
    return {"cell": cell.unsqueeze(1), "allowed": mask.to(torch.int8)}, mask


def walk(repeats=5, action=RIGHT):
    """From each cell one step, in the corridor: to the right it is the best policy."""
    cell = torch.arange(CELLS - 1).repeat(repeats)
    after = cell + 1 if action == RIGHT else cell
    (seen, mask), (then, next_mask), done = shown(cell), shown(after), after == CELLS - 1
    return Demonstrations(seen, torch.full_like(cell, action), done.float(), then, done, mask, next_mask)


def learner(algorithm=DemonstrationDQN, transitions=None, **options):
    options = {"policy": "MultiInputPolicy", "learning_rate": 3e-3} | options
    model = build(algorithm, Seen(CELLS), **options)
    if transitions is not None:
        model.demonstrate(transitions)
    return model


# ---- the losses


def test_the_margin_loss_by_hand():
    q = torch.tensor([[1.0, 2.0, 0.5], [1.0, 2.0, 0.5], [1.0, 2.0, 0.5]])
    actions = torch.tensor([[0], [1], [1]])
    # 2 + 0.1 - 1; the best by more than the margin; by less than this margin.
    assert margin_loss(q[:1], actions[:1], None, 0.1) == pytest.approx(1.1)
    assert margin_loss(q[1:2], actions[1:2], None, 0.1) == 0
    assert margin_loss(q[2:], actions[2:], None, 1.5) == pytest.approx(0.5)
    assert margin_loss(q, actions, None, 0.1) == pytest.approx(1.1 / 3)
    # What is not allowed is no rival.
    masks = torch.tensor([[True, False, True]])
    assert margin_loss(q[:1], actions[:1], masks, 0.1) == pytest.approx(0.0)
    assert margin_loss(q[:1], actions[:1], masks, 1.0) == pytest.approx(0.5)


def test_a_margin_that_is_kept_costs_nothing_and_pulls_nowhere():
    q = torch.tensor([[0.0, 1.0, 0.89], [3.0, 1.0, 2.0]], requires_grad=True)
    loss = margin_loss(q, torch.tensor([[1], [0]]), None, 0.1)
    loss.backward()
    assert loss == 0
    assert torch.equal(q.grad, torch.zeros(2, 3))


def test_the_divergence_is_that_of_torch_over_what_is_allowed():
    torch.manual_seed(0)
    logits, other = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    masks = torch.rand(5, 4) < 0.6
    masks[:, 0] = True
    expected = 0.0
    for row in range(5):
        p, q = (torch.distributions.Categorical(logits=x[row][masks[row]]) for x in (logits, other))
        expected += torch.distributions.kl_divergence(p, q) / 5
    found = policy_divergence(logits, other, masks)
    torch.testing.assert_close(found, expected)
    assert float(policy_divergence(logits, logits + 3.0, None)) == pytest.approx(0.0, abs=1e-6)
    (gradient,) = torch.autograd.grad(found, logits)
    assert torch.isfinite(gradient).all()
    assert (gradient[~masks] == 0).all()


# ---- a batch


@pytest.mark.parametrize(("share", "batch", "rows"), [(0.25, 32, 8), (0.25, 10, 2), (0.9, 4, 3), (0.0, 32, 0)])
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_a_share_of_each_batch_is_demonstrated(share, batch, rows, options):
    model = learner(transitions=replace(walk(), rewards=torch.full((15,), 77.0)), demonstration_share=share, **options)
    model.learn(6 * ROWS)
    drawn = model.sample_batch(batch)
    assert len(drawn.rewards) == batch
    demonstrated = drawn.rewards.squeeze(1) == 77
    assert demonstrated.sum() == rows
    assert demonstrated[batch - rows :].all()
    if rows:
        assert drawn.demonstrated == rows
        assert drawn.masks.shape == (rows, 3)
        for _, part in tree.named_tensors(drawn.observations | {"next": drawn.next_masks, "done": drawn.dones}):
            assert len(part) == batch
    if options:
        assert len(drawn.positions) == batch - rows
        assert (drawn.weights[batch - rows :] == 1).all()
        # A transition of one step beside those of several.
        assert (drawn.discounts[batch - rows :] == model.gamma).all()


def test_the_loss_gains_the_weighted_margin_on_those_rows_alone():
    model = learner(transitions=walk(), imitation_weight=3.0, margin=0.4)
    batch = model.learn(6 * ROWS).sample_batch(16)
    q = torch.randn(16, 3)
    expected = margin_loss(q[-4:], batch.actions[-4:], batch.masks, 0.4)
    assert model.critic_penalty(q, batch) == pytest.approx(float(3 * expected))
    changed = torch.cat([torch.randn(12, 3), q[-4:]])
    assert model.critic_penalty(changed, batch) == model.critic_penalty(q, batch)


def test_the_weight_of_the_divergence_falls_from_1_to_a_tenth():
    model = learner(transitions=walk(), regulariser="kl", temperature=0.5)
    model.pretrain(3)
    batch = model._drawn(8)
    q = torch.randn(8, 3)
    cloned = model._clone(batch.observations).detach()
    whole = policy_divergence(q / 0.5, cloned, batch.masks)
    for left, weight in ((1.0, 1.0), (0.5, 0.55), (0.0, 0.1)):
        model._current_progress_remaining = left
        assert float(model.critic_penalty(q, batch)) == pytest.approx(weight * float(whole), rel=1e-5)


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_without_demonstrations_it_is_dqn(options):
    ours, theirs = (learner(kind, **options).learn(40 * ROWS) for kind in (DemonstrationDQN, DQN))
    assert torch.equal(parameters(ours), parameters(theirs))


def test_demonstrations_stay_as_they_are_when_the_memory_goes_round():
    given = walk()
    model = learner(transitions=given, buffer_size=10 * ROWS)
    before = {name: x.clone() for name, x in tree.named_tensors(model.demonstrations)}
    given.rewards.fill_(-5.0)
    model.learn(60 * ROWS)
    assert model.replay_buffer.full
    held = dict(tree.named_tensors(model.demonstrations))
    assert held.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(held[name], value), name


# ---- pretraining


@pytest.mark.parametrize("regulariser", ["margin", "kl"])
@pytest.mark.parametrize("action", [RIGHT, STAY])
def test_after_pretraining_the_demonstrated_action_is_the_greedy_one(regulariser, action):
    # Even where it is not the best one: what the others would pay is unknown.
    model = learner(transitions=walk(action=action), regulariser=regulariser)
    observation, mask = shown(torch.arange(CELLS - 1))
    model.pretrain(150)
    assert model.num_timesteps == 0
    assert model._n_updates == 150
    actions, _ = model.predict(observation, deterministic=True, action_masks=mask)
    assert (actions == action).all()
    if regulariser == "margin":
        q = model.q_net(observation).detach()
        assert margin_loss(q, actions.unsqueeze(1), mask, 0.1) < 0.02


def test_the_clone_is_the_share_of_each_action():
    # In each cell twice to the right and once staying.
    right, stay = walk(10), walk(5, STAY)
    both = tree.map_tensors(lambda a, b: torch.cat([a, b]), right, stay)
    model = learner(transitions=both, regulariser="kl", learning_rate=1e-2, batch_size=128)
    model.pretrain(300)
    observation, mask = shown(torch.arange(CELLS - 1))
    p = model._clone(observation).masked_fill(~mask, -1e9).softmax(1)
    torch.testing.assert_close(p[:, 1:], torch.tensor([[2 / 3, 1 / 3]]).expand(3, 2), atol=0.08, rtol=0)


def test_the_clone_does_not_change_in_training():
    model = learner(transitions=walk(), regulariser="kl")
    model.pretrain(20)
    before = torch.nn.utils.parameters_to_vector(model._clone.parameters()).clone()
    model.learn(40 * ROWS)
    assert torch.equal(before, torch.nn.utils.parameters_to_vector(model._clone.parameters()))


@pytest.mark.parametrize(("interval", "moves"), [(0, 12), (3 * ROWS, 4)])
def test_the_target_moves_in_pretraining_as_in_training(monkeypatch, interval, moves):
    model = learner(transitions=walk(), target_update_interval=interval)
    count = []
    monkeypatch.setattr(model, "_move_target", lambda: count.append(1))
    model.pretrain(12)
    assert len(count) == moves


def test_a_pretrained_learner_begins_better_than_a_fresh_one():
    observation, mask = shown(torch.arange(CELLS - 1))
    model = learner(transitions=walk(), exploration_initial_eps=0.0, exploration_final_eps=0.0, learning_starts=0)
    model.pretrain(150)
    model.learn(20 * ROWS)
    assert [e["l"] for e in model.ep_info_buffer][:ROWS] == [2] * ROWS
    assert (model.predict(observation, deterministic=True, action_masks=mask)[0] == RIGHT).all()


# ---- files


@pytest.mark.parametrize(
    "options",
    [{}, {"regulariser": "kl"}, EVERYTHING | {"buffer_size": 20 * ROWS}],
    ids=["margin", "kl", "everything"],
)
def test_a_stopped_training_goes_on_bit_for_bit(tmp_path, options):
    def begun(**more):
        model = learner(transitions=walk(), **options | more)
        model.pretrain(20)
        return model

    total = 60 * ROWS
    whole = begun().learn(total)
    state = tmp_path / "state.safetensors"
    begun().learn(total, callback=[ResumeCallback(state, every_seconds=0), Stop(total // 2 - 1)])
    torch.manual_seed(12345)
    resumed = learner(**options, seed=7)
    resumed.restore_state(state)
    assert 0 < resumed.num_timesteps < total
    resumed.learn(total - resumed.num_timesteps, reset_num_timesteps=False)
    assert torch.equal(parameters(resumed), parameters(whole))
    held = whole.memory_tensors()
    assert sum(name.startswith("demonstrations.") for name in held) == 9
    again = resumed.memory_tensors()
    assert held.keys() == again.keys()
    for name, value in held.items():
        assert torch.equal(value, again[name]), name
    assert resumed.demonstrations.masks.dtype == torch.bool


def test_one_tensor_of_observations_and_no_masks(tmp_path):
    torch.manual_seed(0)
    model = build(DemonstrationDQN)
    seen = torch.rand(40, 2) * 2 - 1
    action = (seen[:, 0] > 0).long()
    model.demonstrate(Demonstrations(seen, action, torch.zeros(40), seen, torch.ones(40)))
    model.pretrain(400)
    assert (model.predict(seen, deterministic=True)[0] == action).float().mean() > 0.9
    model.learn(10 * ROWS)
    model.save_state(tmp_path / "state")
    again = build(DemonstrationDQN)
    again.restore_state(tmp_path / "state")
    assert torch.equal(again.demonstrations.observations, seen)
    assert again.demonstrations.masks is None


def test_a_saved_model_keeps_its_arguments(tmp_path):
    options = {"demonstration_share": 0.5, "regulariser": "kl", "margin": 0.3, "temperature": 2.0}
    model = learner(**options, imitation_weight=0.7)
    model.save(tmp_path / "model")
    loaded = DQN.load(tmp_path / "model", device="cpu")
    assert isinstance(loaded, DemonstrationDQN)
    assert {name: getattr(loaded, name) for name in options} == options
    assert loaded.imitation_weight == 0.7
    assert torch.equal(parameters(model), parameters(loaded))


# ---- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"demonstration_share": 1.0}, "demonstration_share: 1.0; allowed: at least 0, below 1"),
        ({"regulariser": "l2"}, "regulariser: 'l2'; allowed: margin, kl"),
        ({"margin": -0.1}, "margin: -0.1"),
        ({"temperature": 0.0}, "temperature: 0.0"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        learner(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": torch.full((15,), 3)}, r"demonstrations.actions\[0\]: 3; allowed: 0 to 2"),
        ({"actions": torch.zeros(15, dtype=torch.int64)}, r"demonstrations.actions\[0\]: masked"),
        ({"actions": torch.ones(15, 1, dtype=torch.int64)}, r"demonstrations.actions: \(15, 1\); allowed: \(15,\)"),
        ({"rewards": torch.full((15,), torch.nan)}, "demonstrations.rewards: not finite"),
        ({"dones": torch.zeros(14)}, r"demonstrations.dones: \(14,\); allowed: \(15,\)"),
        ({"masks": torch.ones(15, 2)}, r"demonstrations.masks: \(15, 2\); allowed: \(15, 3\)"),
        ({"next_masks": None}, "next_masks: absent"),
        ({"masks": None}, "masks, next_masks: absent"),
        ({"observations": torch.zeros(15, 1)}, "demonstrations.observations: one tensor; allowed: a dict of"),
        ({"next_observations": shown(torch.ones(9, dtype=torch.int64))[0]}, r"next_observations.allowed: \(9, 3\)"),
    ],
)
def test_transitions_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        learner(transitions=replace(walk(), **change))


def test_learning_from_nothing_is_refused():
    model = learner()
    with pytest.raises(InputError, match="demonstrations: none; call demonstrate first"):
        model.pretrain(10)
    with pytest.raises(InputError, match="demonstrations: none; needs at least one"):
        model.demonstrate(tree.take(walk(), slice(0)))
    model.demonstrate(walk())
    with pytest.raises(InputError, match="updates: 0"):
        model.pretrain(0)


def test_a_divergence_from_nothing_is_refused():
    model = learner(transitions=walk(), regulariser="kl")
    with pytest.raises(InputError, match="'kl' before pretrain"):
        model.learn(20 * ROWS)
    # The clone is that of these transitions.
    model.pretrain(2)
    model.demonstrate(walk(3))
    assert model._clone is None


def test_a_variant_can_add_a_penalty_of_its_own():
    class Further(DQN):
        def critic_penalty(self, q_values, batch):
            return 5.0

    class Both(DemonstrationDQN, Further):
        pass

    model = learner(Both, transitions=walk())
    batch = model._drawn(8)
    assert isinstance(batch, MixedBatch)
    q = torch.randn(8, 3)
    expected = 5 + margin_loss(q, batch.actions, batch.masks, 0.1)
    assert float(model.critic_penalty(q, batch)) == pytest.approx(float(expected))
