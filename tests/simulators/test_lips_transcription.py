import warnings

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO

from core.errors import InputError
from core.sequence.edit_distance import prefix_edit_distances
from core.simulation import GymEnv, GymVectorEnv, SB3VecEnv, rollout
from simulators.lips import alphabet
from simulators.lips.environment import make
from simulators.lips.speakers import Speakers
from simulators.lips.talking_mouth import TalkingMouth
from simulators.lips.transcription import Transcription

WORLD = Transcription(TalkingMouth.mini(), Speakers.draw(5, 0))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def play(state, actions, world=WORLD):
    """Rewards ``(B, L)``, ends ``(B, L)`` and the last state."""
    rewards, ends = [], []
    noise = world.noise(len(actions), seeded())
    for action in actions.unbind(1):
        step = world.step(state, action, noise)
        state = step.state
        rewards.append(step.reward)
        ends.append(step.terminated)
    return torch.stack(rewards, 1), torch.stack(ends, 1), state


def test_rewards_are_the_edits_that_each_symbol_saves():
    start = WORLD.reset(400, seeded())
    # Half of the symbols are the right ones, so that the distances do not only grow.
    actions = torch.randint(3, alphabet.SIZE, (400, WORLD.steps), generator=seeded(1))
    right = torch.rand(actions.shape, generator=seeded(2)) < 0.5
    reference = start.reference[:, : WORLD.steps]
    actions = torch.where(right & (reference > 2), reference, actions)
    rewards, ends, state = play(start, actions)
    found = prefix_edit_distances(actions, actions > 2, start.reference, start.length)
    before = torch.cat([start.length[:, None], found[:, :-1]], 1)
    assert torch.equal(rewards.long(), before - found)
    assert set(rewards.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert torch.equal(state.distance, found[:, -1])
    assert torch.equal(state.tokens, actions)
    assert ends[:, -1].all()
    assert not ends[:, :-1].any()


def test_the_right_transcript_earns_its_length_and_ends():
    speech = WORLD.mouth.sample(50, seeded(), WORLD.speakers)
    start = WORLD.reset_to(speech.observation, speech.tokens, speech.text_length)
    assert torch.equal(start.distance, speech.text_length)
    rewards, ends, state = play(start, speech.tokens)
    assert torch.equal(rewards.sum(1).long(), speech.text_length)
    assert not state.distance.any()
    assert torch.equal(ends[:, :-1], (speech.tokens == alphabet.EOS)[:, :-1])
    assert alphabet.decode(state.tokens) == speech.texts


def test_ends_padding_and_starts_write_nothing():
    start = WORLD.reset(3, seeded())
    rewards, ends, state = play(start, torch.tensor([[alphabet.PAD], [alphabet.SOS], [alphabet.EOS]]))
    assert not rewards.any()
    assert ends[:, 0].tolist() == [False, False, True]
    assert torch.equal(state.distance, start.length)
    mask = WORLD.action_mask(start)
    assert mask.shape == (3, alphabet.SIZE)
    assert mask[0].nonzero().flatten().tolist() == list(range(2, alphabet.SIZE))


def test_a_step_leaves_the_state_before_it_alone():
    start = WORLD.reset(4, seeded())
    play(start, torch.full((4, 3), 5))
    assert not start.tokens.any()
    assert not start.row.any()


def test_the_agent_sees_the_clip_and_its_own_symbols():
    speech = WORLD.mouth.sample(2, seeded(), WORLD.speakers)
    start = WORLD.reset_to(speech.observation, speech.tokens, speech.text_length)
    _, _, state = play(start, torch.tensor([[7, 3], [4, 4]]))
    seen = WORLD.observe(state, None)
    assert torch.equal(seen["clip"], speech.observation)
    assert seen["tokens"][:, :3].tolist() == [[7, 3, 0], [4, 4, 0]]
    assert all(WORLD.observation_space.contains({k: v[i].numpy() for k, v in seen.items()}) for i in range(2))


@pytest.mark.parametrize("mode", ["features", "landmarks", "frames"])
def test_gymnasium_accepts_the_single_copy(mode):
    world = Transcription(TalkingMouth.mini(mode=mode, frames=20, height=16, width=24), Speakers.draw(5, 0), 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        check_env(GymEnv(world, scaled=False), skip_render_check=True)
        check_env(GymEnv(world), skip_render_check=True)


def test_the_entry_point_is_playable():
    env = make(grammar="mini", seed=3)
    seen, info = env.reset(seed=5)
    assert seen["clip"].shape == (48, 12)
    assert info["action_mask"].tolist() == [0, 0] + [1] * 28
    _, reward, terminated, truncated, info = env.step(np.int64(alphabet.EOS))
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert info["distance"] > 0
    assert make(mode="frames", frames=75).observation_space["clip"].shape == (75, 32, 48)
    with pytest.raises(InputError, match="grammar: 'long'; allowed: grid, mini"):
        make(grammar="long")


def test_a_batch_is_its_single_copies():
    env = GymVectorEnv(WORLD, 4)
    seen, _ = env.reset(seed=0)
    assert seen["clip"].shape == (4, 48, 12)
    total = np.zeros(4)
    for _ in range(WORLD.steps):
        seen, reward, terminated, _, _ = env.step(np.full(4, 10))
        total += reward
    assert terminated.all()
    assert (np.abs(reward) <= 1).all()
    assert (total <= 2).all()


def test_a_learner_of_another_library_runs():
    world = Transcription(TalkingMouth.mini(frames=10), Speakers.draw(5, 0), 4)
    model = PPO("MultiInputPolicy", SB3VecEnv(world, 4, seed=0), n_steps=8, batch_size=16, n_epochs=1, device="cpu")
    model.learn(64)
    assert model.num_timesteps >= 64


def test_rollouts_record_the_distance():
    def last(observation, state):
        return torch.where(state.written < 3, 10, alphabet.EOS)

    data = rollout(WORLD, last, horizon=6, batch=8, seed=0)
    assert {"action", "distance", "reward"} <= set(data.data_vars)


def test_refusals():
    start = WORLD.reset(2, seeded())
    noise = WORLD.noise(2, seeded())
    with pytest.raises(InputError, match="symbols below 30"):
        WORLD.step(start, torch.tensor([0, 30]), noise)
    with pytest.raises(InputError, match=r"must be \(2,\)"):
        WORLD.step(start, torch.tensor([4]), noise)
    with pytest.raises(InputError, match="max_length: 0"):
        Transcription(WORLD.mouth, WORLD.speakers, 0)
