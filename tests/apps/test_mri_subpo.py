"""SubPO as a line chooser: it trains, goes on after a kill, repeats no line, and sees what was acquired only."""

import pytest
import torch

from apps.mri.images import Images
from apps.mri.learned import subpo
from apps.mri.learned.subpo import LineChooser, SubPOSettings, TrainedSubPO
from apps.mri.methods import Sequential
from apps.mri.problem import MixtureSettings, Problem
from core.rl import SubPO
from core.study import Context
from simulators.mri.operators import KSpaceLines
from simulators.mri.scanner import Scanner
from tests.apps.mri_cases import seeded

pytest.importorskip("sklearn")

SIZE, BUDGET = 16, 5
IMAGES = Images(kind="phantom2d", size=SIZE, train=40)
TINY = SubPOSettings(updates=2, scans=4, particles=4)


def product(seed=0, **changes):
    return TrainedSubPO(
        problem=Problem(name="tiny", images=IMAGES, budget=BUDGET, initial=1),
        prior=MixtureSettings(components=3, rank=3),
        settings=TINY.model_copy(update=changes),
        limit=20,
        seed=seed,
    )


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """A study's folder; what is trained there is trained once."""
    root = tmp_path_factory.mktemp("study")
    (root / "checkpoint").mkdir()
    return Context(root / "run", root / "checkpoint", torch.device("cpu"), root, root / "log.jsonl")


@pytest.fixture(scope="module")
def chooser(context):
    return chooser_of(product(), context)


def chooser_of(product, context, count=6):
    return product.lines(context)([seeded(i) for i in range(count)])


def subjects(count=6, seed=3):
    """Samples (S, W, R) of test images, under masks (S, W) that hold the central line and some others."""
    operator = KSpaceLines((2, SIZE, SIZE))
    samples = operator.forward(IMAGES.test(0, count))
    mask = torch.rand(count, SIZE, generator=seeded(seed)) < 0.2
    mask[:, SIZE // 2] = True
    return operator, samples, mask


def weights(product, context):
    return SubPO.load(context.product(product) / "policy").policy.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_training_moves_the_policy_and_is_a_function_of_the_seed(context, tmp_path):
    again = Context(tmp_path / "run", tmp_path / "checkpoint", torch.device("cpu"), tmp_path, tmp_path / "log.jsonl")
    trained = weights(product(), context)
    assert same(trained, weights(product(), again))
    assert not same(trained, weights(product(seed=1), again))
    assert not same(trained, weights(product(updates=1), again))


def test_a_kill_does_not_change_what_is_learned(context, tmp_path, monkeypatch):
    """Four updates, killed after two of them with the state just written."""
    monkeypatch.setattr(subpo, "_UPDATES", 2)
    whole = product(updates=4)
    reference = weights(whole, context)
    learn, calls = SubPO.learn, []

    def killed(self, *arguments, **options):
        if calls:
            raise RuntimeError("killed")
        calls.append(1)
        learn(self, *arguments, **options)

    class Every(subpo.ResumeCallback):
        def __init__(self, path, _):
            super().__init__(path, 0.0)

    monkeypatch.setattr(subpo, "ResumeCallback", Every)
    again = Context(tmp_path / "run", tmp_path / "checkpoint", torch.device("cpu"), tmp_path, tmp_path / "log.jsonl")
    monkeypatch.setattr(SubPO, "learn", killed)
    with pytest.raises(RuntimeError, match="killed"):
        again.product(whole)
    steps = []

    def counted(self, *arguments, **options):
        steps.append(self.num_timesteps)
        learn(self, *arguments, **options)

    monkeypatch.setattr(SubPO, "learn", counted)
    assert same(weights(whole, again), reference)
    assert steps[0] > 0  # what was done before the kill was not all done again


def test_no_line_is_chosen_twice(chooser):
    operator, samples, mask = subjects()
    rows = torch.arange(len(mask))
    for _ in range(int((~mask).sum(1).min())):
        line = chooser(samples, mask)
        assert line.dtype == torch.int64
        assert not bool(mask[rows, line].any())
        mask[rows, line] = True
    scanner = Scanner(operator, IMAGES.test(0, 6))
    start = torch.zeros(SIZE, dtype=torch.bool)
    start[SIZE // 2] = True
    ledger, order = Sequential(chooser, start, BUDGET).acquire(scanner)
    assert ledger.mask.sum(1).tolist() == [BUDGET] * 6
    assert int(scanner.counts.max()) == 1
    assert order.shape == (6, BUDGET - 1)


def shown_to_the_policy(context, samples, mask, lucks=None):
    """What a chooser shows its policy (S, observation)."""
    shown = []

    def policy(observation, state):
        shown.append(observation)
        return (~state.mask).float().argmax(1)

    LineChooser(policy, product().world(context), lucks or [seeded(i) for i in range(len(mask))])(samples, mask)
    return shown[0]


@pytest.mark.parametrize("value", [7.0, float("nan")])
def test_samples_that_were_not_acquired_are_not_seen(context, value):
    _, samples, mask = subjects()
    unseen = torch.where(mask[..., None], samples, value)
    known = shown_to_the_policy(context, samples, mask)
    assert bool(known.isfinite().all())
    assert torch.equal(known, shown_to_the_policy(context, unseen, mask))
    lines = [chooser_of(product(), context)(y, mask) for y in (samples, unseen)]
    assert torch.equal(*lines)
    # Those that were acquired are seen.
    assert not torch.equal(known, shown_to_the_policy(context, 3 * samples, mask))


def test_a_batch_of_scans_equals_its_single_scans(context):
    _, samples, mask = subjects()
    together = shown_to_the_policy(context, samples, mask)
    alone = [shown_to_the_policy(context, samples[i : i + 1], mask[i : i + 1], [seeded(i)]) for i in range(6)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert not torch.allclose(alone[1], shown_to_the_policy(context, samples[1:2], mask[1:2], [seeded(9)]))


@pytest.mark.parametrize("reward", ["ssim_gain", "psnr_gain"])
def test_image_quality_can_be_what_is_paid(context, reward):
    _, samples, mask = subjects(2)
    line = chooser_of(product(reward=reward, updates=1), context, 2)(samples, mask)
    assert not bool(mask[torch.arange(2), line].any())


def test_information_is_what_is_learned(context):
    """With more updates a policy paid in information collects more of it than an untrained one."""

    def collected(chosen):
        world = chosen.world(context)
        operator, _, _ = subjects()
        start = torch.zeros(SIZE, dtype=torch.bool)
        start[SIZE // 2] = True
        order = Sequential(chooser_of(chosen, context), start, BUDGET).acquire(Scanner(operator, IMAGES.test(0, 6)))[1]
        state, total = world.information.start(6), torch.zeros(6)
        for line in order.T:
            gain, state = world.information.gain(state, line)
            total += gain
        return float(total.mean())

    assert collected(product(updates=40, scans=16)) > collected(product(updates=1, learning_rate=1e-9))
