"""The generation loop: its order and its luck, what is learned from, what is measured, and how it survives a kill."""

import json
import math
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from apps.payments.exploration import Learned
from apps.payments.generations import GenerationLoop, LoggedGeneration, play
from apps.payments.measures import MODEL_SERIES, SEGMENTS
from apps.payments.oracles import ImbalanceSettings, Rows, fit_oracle
from apps.payments.scenario import Arm, Scenario
from core import bandits
from core.errors import InputError
from core.study.loading import load_values
from simulators.payments import Delay, Drift, Outage, PaymentContext, dense_mask
from tests.apps.payments_cases import arm, scenario

CHANGING = {
    "drift": Drift(scale=1.0),
    "delay": Delay(median_hours=40, sigma=1.0, never=0.05, decline_factor=2),
    "outage": Outage(rate=0.3, hours=48),
}


class Recorded(GenerationLoop):
    """A loop that remembers what it decided and what it learned from."""

    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        self.decided, self.fits = [], {}

    def step(self, log=None):
        blocks = []
        super().step(blocks.append)
        self.decided.append(blocks)

    def fit(self, rows):
        self.fits[self.generation] = rows
        return super().fit(rows)

    def logged(self, generation):
        return LoggedGeneration.cat([block.rows for block in self.decided[generation]])

    def whole(self, name, generation):
        return torch.cat([getattr(block, name) for block in self.decided[generation]])


def played(given=None, rule=None, seed=0, generations=None, **more):
    given = given or scenario()
    loop = Recorded(given, rule or arm(gamma=300.0), seed, **more)
    for _ in range(generations or given.generations):
        loop.step()
    return loop


def same_rows(rows: Rows, logged: LoggedGeneration, known):
    """The rows are those of the log where ``known``, in order."""
    for f in fields(PaymentContext):
        assert torch.equal(getattr(rows.context, f.name), getattr(logged.state, f.name)[known]), f.name
    assert torch.equal(rows.action, logged.action[known])
    assert torch.equal(rows.reward, logged.reward[known])


# ---- the order of the loop, and its luck

RULES = ["uniform", "greedy", "epsilon", "epsilon_slice", "igw", "igw_elim", "softmax", "grouped_igw"]


def test_generation_0_is_uniform_and_the_same_for_every_rule():
    loops = [played(rule=arm(rule, epsilon=0.3, gamma=300.0), generations=1) for rule in [*RULES, "thompson_bootstrap"]]
    first = loops[0].logged(0)
    for loop in loops:
        (block,) = loop.decided[0]
        assert torch.equal(block.probabilities, bandits.uniform(block.mask))
        assert torch.equal(block.rows.propensity, 1 / block.mask.double().sum(1))
        assert block.rows.coin.all()
        logged = loop.logged(0).tensors()
        assert all(torch.equal(x, logged[name]) for name, x in first.tensors().items())


def test_a_policy_is_its_rule_on_the_model_of_the_generations_before():
    loop = played(rule=arm(gamma=300.0, floor=0.1, window=2), generations=3)
    for generation, first in ((1, 0), (2, 0)):
        log = LoggedGeneration.cat([loop.logged(g) for g in range(first, generation)])
        rows = Rows(log.state, log.action, log.reward)
        fitted = fit_oracle(loop.arm.oracle, ImbalanceSettings(), rows, loop.scenario.sizes)
        (block,) = loop.decided[generation]
        expected = bandits.inverse_gap_weighting(fitted.predict_all(block.rows.state), block.mask, 300.0)
        torch.testing.assert_close(
            block.probabilities, bandits.with_floor(expected, block.mask, 0.1), rtol=0, atol=1e-12
        )
        chosen = block.probabilities.gather(1, block.rows.action[:, None])[:, 0]
        assert torch.equal(block.rows.propensity, chosen)
        assert block.mask.gather(1, block.rows.action[:, None]).all()


@pytest.mark.parametrize("rule", RULES[1:])
def test_all_arms_meet_the_same_payments_and_the_same_luck(rule):
    given = scenario(generations=3, **CHANGING)
    uniform, other = (played(given, arm(r, epsilon=0.3, gamma=300.0), measure=False) for r in ("uniform", rule))
    for g in range(3):
        ours, theirs = uniform.logged(g), other.logged(g)
        for f in fields(ours.state):
            assert torch.equal(getattr(ours.state, f.name), getattr(theirs.state, f.name))
        truth = uniform.whole("truth", g)
        assert torch.equal(truth, other.whole("truth", g))
        # One uniform decides both answers: who asks for the more probable approval gets no less.
        p, q = (truth.gather(1, rows.action[:, None])[:, 0] for rows in (ours, theirs))
        assert bool((ours.reward <= theirs.reward)[p <= q].all())
        assert bool((ours.reward >= theirs.reward)[p >= q].all())
        alike = ours.action == theirs.action
        assert torch.equal(ours.arrival[alike], theirs.arrival[alike])
        assert g == 0 or not alike.all()


def test_actions_are_drawn_with_common_numbers_too():
    # After generation 0, which is the same, two rules that differ by a hair choose alike.
    one, two = (played(rule=arm("epsilon", epsilon=e), generations=2) for e in (0.3, 0.3001))
    assert not torch.equal(one.whole("probabilities", 1), two.whole("probabilities", 1))
    assert torch.equal(one.logged(1).action, two.logged(1).action)
    assert torch.equal(one.logged(1).reward, two.logged(1).reward)


def test_every_world_and_generation_has_payments_of_its_own():
    loops = [played(seed=seed, generations=2) for seed in (0, 1)]
    hours = [loop.logged(g).state.hour for loop in loops for g in range(2)]
    assert len(torch.cat(hours).unique()) == 4 * 300


def test_the_size_of_a_block_is_of_no_account_as_long_as_one_is_enough(monkeypatch):
    given = scenario(**CHANGING)
    rule = arm("epsilon_slice", epsilon=0.4)
    whole = play(given, rule, 3)
    monkeypatch.setattr("apps.payments.generations.BLOCK", given.payments)
    assert play(given, rule, 3).identical(whole)


def test_blocks_add_up_to_a_generation(monkeypatch):
    monkeypatch.setattr("apps.payments.generations.BLOCK", 128)
    loop = played(generations=2)
    assert [len(block.mask) for block in loop.decided[1]] == [128, 128, 44]
    assert len(loop.rows[-1].action) == 300
    value = (loop.whole("probabilities", 1) * loop.whole("truth", 1)).sum(1).mean()
    assert loop.records["value"][1] == pytest.approx(float(value), abs=1e-14)


# ---- what is learned from


@pytest.mark.parametrize("window", [1, 2, 3, "all"])
def test_a_memory_of_w_generations_learns_from_the_last_w(window):
    loop = played(scenario(generations=5), arm(gamma=300.0, window=window), measure=False)
    for g in range(5):
        first = 0 if window == "all" else max(0, g + 1 - window)
        log = LoggedGeneration.cat([loop.logged(i) for i in range(first, g + 1)])
        same_rows(loop.fits[g], log, torch.ones(len(log.action), dtype=torch.bool))
    assert loop.learned.examples == 5 * 300  # each row once, however often it was learned from
    assert torch.equal(loop.learned.rows, torch.bincount(loop.fits[4].action, minlength=32))


@pytest.mark.parametrize("window", [1, 2, "all"])
def test_answers_that_come_late_are_learned_from_late_or_never(window):
    given = scenario(generations=4, delay=Delay(median_hours=100, sigma=1.0, never=0.1))
    loop = played(given, arm(gamma=300.0, window=window), measure=False)
    seen = []
    for g in range(4):
        first = 0 if window == "all" else max(0, g + 1 - window)
        log = LoggedGeneration.cat([loop.logged(i) for i in range(first, g + 1)])
        known = log.arrival <= (g + 1) * given.duration
        assert 0.3 < known.double().mean() < 0.95
        same_rows(loop.fits[g], log, known)
        seen.append(loop.fits[g].context.hour)
    never = torch.cat([loop.logged(g).state.hour[loop.logged(g).arrival == math.inf] for g in range(4)])
    assert len(never) > 60
    assert not torch.isin(never, torch.cat(seen)).any()
    late = loop.logged(0).state.hour[~torch.isin(loop.logged(0).state.hour, seen[0])]
    assert torch.isin(late, seen[1]).any() == (window != 1)
    # Decisions wait for no one: hours of the arrival are counted from the first generation's start.
    assert bool((loop.logged(2).arrival >= 2 * given.duration).all())


def test_the_slice_alone_teaches_and_the_mixture_is_logged():
    loop = played(scenario(payments=2000), arm("epsilon_slice", epsilon=0.3), measure=False)
    for g in (1, 2):
        (block,) = loop.decided[g]
        rows = block.rows
        same_rows(loop.fits[g], rows, rows.coin)
        assert rows.coin.double().mean() == pytest.approx(0.3, abs=0.05)
        chosen = block.probabilities.gather(1, rows.action[:, None])[:, 0]
        torch.testing.assert_close(rows.propensity, chosen, rtol=0, atol=1e-15)
        best = block.probabilities.argmax(1)
        available = block.mask.double().sum(1)
        marginal = 0.3 / available + 0.7 * (rows.action == best).double()
        torch.testing.assert_close(rows.propensity, marginal, rtol=0, atol=1e-12)
        # Outside the slice the best action is taken; within it all are alike.
        assert torch.equal(rows.action[~rows.coin], best[~rows.coin])
        hits, expected = (rows.action == best)[rows.coin].double(), 1 / available[rows.coin]
        spread = float((expected * (1 - expected)).sum().sqrt())
        assert abs(float((hits - expected).sum())) < 4 * spread
    assert loop.records["rows"][1] == loop.logged(1).coin.sum()


def test_inverse_propensity_weights_are_capped_and_normalised():
    rule = arm(gamma=3000.0, weights="inverse_propensity", cap=4.0)
    loop = played(rule=rule, measure=False, generations=3)
    for g in range(3):
        inverse = (1 / loop.logged(g).propensity).clamp(max=4.0)
        torch.testing.assert_close(loop.fits[g].weight, inverse / inverse.mean())
        assert float(loop.fits[g].weight.mean()) == pytest.approx(1.0)
        assert float(loop.fits[g].weight.max()) == pytest.approx(4 / float(inverse.mean()))
    assert played(measure=False, generations=1).fits[0].weight is None


def test_labels_that_are_all_alike_keep_the_model_and_leave_a_note():
    loop = Recorded(scenario(), arm(gamma=300.0), 0)
    loop.step()
    before, learned = loop.oracle, loop.learned
    # Approvals at once, declines long after: all that is known by the end of the generation was approved.
    loop.world = replace(loop.world, delay=Delay(median_hours=1e-3, sigma=0.0, never=0.0, decline_factor=1e6))
    loop.step()
    assert loop.oracle is before
    assert loop.learned is learned
    loop.world = replace(loop.world, delay=None)
    loop.step()
    assert loop.oracle is not before
    (note,) = json.loads(loop.result().attrs["notes"])
    assert note.startswith("generation 1: all ")
    assert note.endswith("rows have the reward 1: nothing to learn from; the model before was kept")


def test_without_a_first_model_decisions_stay_uniform_and_measures_are_gaps():
    given = scenario(generations=2, delay=Delay(never=1.0))
    loop = played(given)
    assert torch.equal(loop.whole("probabilities", 1), bandits.uniform(loop.whole("mask", 1)))
    data = loop.result()
    assert all(data[name].isnull().all() for name in MODEL_SERIES)
    assert data["value"].notnull().all()
    assert len(json.loads(data.attrs["notes"])) == 2


# ---- rules that know more of the oracle


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [((450, 900), {1: 600, 2: 900}), ((250,), {0: 300}), (None, {0: 300, 1: 600, 3: 1200})],
)
@pytest.mark.parametrize("previous", [False, True])
def test_falcon_learns_where_an_epoch_begins(epochs, expected, previous):
    gamma = {"kind": "falcon", "complexity": 20.0, "epochs": epochs, "previous_epoch": previous}
    loop = played(scenario(generations=5), arm(gamma=gamma, window="all"), measure=False)
    if previous:  # the rows since the epoch before
        ends = list(expected.values())
        expected = dict(zip(expected, np.diff([0, *ends]).tolist(), strict=True))
    assert {g: len(rows.action) for g, rows in loop.fits.items()} == expected
    first = min(expected)
    assert torch.equal(loop.whole("probabilities", first), bandits.uniform(loop.whole("mask", first)))
    (block,) = loop.decided[4]
    schedule = loop.arm.falcon.schedule()
    expected_gamma = schedule(block.mask.sum(1), (max(expected) + 1) * 300)
    found = bandits.inverse_gap_weighting(loop.scores(block.rows.state), block.mask, expected_gamma)
    torch.testing.assert_close(block.probabilities, found, rtol=0, atol=1e-12)


def test_thompson_s_members_differ_and_vote():
    loop = played(rule=arm("thompson_bootstrap", members=5), generations=2)
    assert len(loop.oracle) == 5
    assert len({fitted.coefficients.sum().item() for fitted in loop.oracle}) == 5
    (block,) = loop.decided[1]
    votes = block.probabilities * (5 + block.mask.sum(1, keepdim=True)) - block.mask.double()
    torch.testing.assert_close(votes, votes.round(), rtol=0, atol=1e-9)
    assert torch.equal(votes.round().sum(1), torch.full((300,), 5.0, dtype=torch.float64))
    torch.testing.assert_close(block.rows.propensity, block.probabilities.gather(1, block.rows.action[:, None])[:, 0])
    weights = {loop.fits[1].weight is None, loop.fits[0].weight is None}
    assert weights == {True}  # the draws are each member's own


def test_groups_and_rows_of_the_last_fit_are_what_the_rule_uses():
    grouped = played(rule=arm("grouped_igw", gamma=300.0, groups=6), generations=2)
    assert len(grouped.learned.groups.unique()) == 6
    state, mask = grouped.measures.state, grouped.measures.mask
    expected = bandits.grouped_inverse_gap_weighting(grouped.scores(state), mask, grouped.learned.groups, 300.0)
    assert torch.equal(grouped.measures.policy(grouped), expected)
    eliminated = played(rule=arm("igw_elim", gamma=300.0, mellowness=0.02), generations=2)
    state, mask = eliminated.measures.state, eliminated.measures.mask
    rows = torch.bincount(eliminated.logged(1).action, minlength=32)
    assert torch.equal(eliminated.learned.rows, rows)
    assert eliminated.learned.examples == 600
    scores = eliminated.scores(state)
    narrower = bandits.surviving_actions(scores, mask, 1 / rows.double(), 600, mellowness=0.02)
    assert narrower.sum() < mask.sum()
    expected = bandits.inverse_gap_weighting(scores, narrower, 300.0)
    assert torch.equal(eliminated.measures.policy(eliminated), expected)


# ---- what is measured


def test_the_online_series_are_those_of_the_policy_and_the_simulators_truth():
    loop = played(scenario(**CHANGING), arm("epsilon_slice", epsilon=0.4))
    data = loop.result()
    assert data["generation"].values.tolist() == [0, 1, 2, 3]
    for g in range(4):
        pi, mask, truth = (loop.whole(name, g).numpy() for name in ("probabilities", "mask", "truth"))
        rows, at = loop.logged(g), data.isel(generation=g)
        value = (pi * truth).sum(1)
        best = np.where(mask, truth, -1).max(1).mean()
        uniform = ((truth * mask).sum(1) / mask.sum(1)).mean()
        expected = {
            "value": value.mean(),
            "best_value": best,
            "uniform_value": uniform,
            "approvals": float(rows.reward.mean()),
            "entropy": -(pi * np.log(np.where(pi > 0, pi, 1))).sum(1).mean(),
            "propensity": float(rows.propensity.mean()),
            "regret": 1e4 * (best - value.mean()),
            "rejections_avoided": (value.mean() - uniform) / (1 - uniform),
            "rows": int(rows.coin.sum()),
        }
        for name, number in expected.items():
            assert float(at[name]) == pytest.approx(number, abs=1e-10), name
        state = rows.state
        parts = {
            "scheme mc": state.scheme == 1,
            "funding prepaid": state.funding == 2,
            "interaction ecom": state.interaction == 0,
            "cross-border": state.cross_border > 0,
            "issuers 1-10": state.issuer < 10,
        }
        for name, part in parts.items():
            mean = value[part.numpy()].mean()
            assert float(at["segment_value"].sel(segment=name)) == pytest.approx(mean, abs=1e-12), name
        assert np.isnan(at["segment_value"].sel(segment="issuers after 40"))  # there are twelve
        bins = np.searchsorted(10.0 ** np.linspace(-5, 0, 41)[1:-1], rows.propensity.numpy())
        np.testing.assert_array_equal(at["propensity_counts"], np.bincount(bins, minlength=40))
    assert data["segment"].values.tolist() == list(SEGMENTS)
    assert data["value"].attrs["units"] == "1"


def test_the_models_series_are_measured_on_a_fixed_set_of_payments():
    loop = played(scenario(evaluation=400, **CHANGING), generations=1)
    deployed = loop.measures.policy(loop)
    loop.step()
    at = loop.result().isel(generation=1)
    state, mask, truth = loop.measures.state, loop.measures.mask, loop.world.probabilities(loop.measures.state)
    scores, following = loop.scores(state), loop.measures.policy(loop)
    square, n_a = (scores - truth) ** 2, mask.double().sum(1, keepdim=True)
    best = scores.masked_fill(~mask, -1).argmax(1, keepdim=True)
    gaps = ((scores.gather(1, best) - scores) * mask).sum(1)[n_a[:, 0] > 1] / (n_a[n_a > 1] - 1)
    weight = torch.where(deployed > 0, following / deployed, 0)
    c2 = (weight * following).sum(1).mean()
    expected = {
        "greedy_value": truth.gather(1, best).mean(),
        "mse_uniform": (square * mask / n_a).sum(1).mean(),
        "mse_log": (square * deployed).sum(1).mean(),
        "gap": gaps.mean(),
        "c2": c2,
        "c_inf": weight.max(),
        "missing_mass": torch.zeros(()),
        "model_error": (following * (scores - truth)).sum(1).mean(),
        "model_error_bound": (c2 * (square * deployed).sum(1).mean()).sqrt(),
    }
    for name, number in expected.items():
        assert float(at[name]) == pytest.approx(float(number), abs=1e-12), name
    assert float(at["weight_mass"].sum()) == pytest.approx(1 if not (deployed == 0).any() else 1.0)
    # The same payments for every arm and after every generation.
    other = GenerationLoop(loop.scenario, arm("uniform"), 0)
    assert torch.equal(other.measures.state.hour, state.hour)
    assert not torch.equal(GenerationLoop(loop.scenario, arm("uniform"), 1).measures.state.hour, state.hour)
    assert not torch.isin(loop.logged(0).state.hour, state.hour).any()


def test_the_models_own_estimate_errs_by_no_more_than_its_bound():
    for rule in (arm(gamma=300.0), arm("softmax", temperature=0.05), arm("epsilon", epsilon=0.05)):
        data = played(scenario(generations=6, **CHANGING), rule).result()
        assert bool((abs(data["model_error"]) <= data["model_error_bound"]).all())
        assert float(abs(data["model_error"]).max()) > 0
        assert bool((data["c2"] >= 1 - 1e-12).all())
        assert bool((data["c_inf"] >= data["c2"]).all())


def test_a_policy_that_stays_the_same_is_covered_by_its_own_log():
    data = played(scenario(feature_coverage=True), arm("uniform")).result()
    for name in ("c2", "c_inf", "c_phi"):
        np.testing.assert_allclose(data[name], 1, rtol=1e-9)
    assert not data["missing_mass"].any()
    # A greedy policy's log says nothing of what the next one does differently.
    greedy = played(scenario(), arm("greedy")).result().isel(generation=slice(1, None))
    assert np.isinf(greedy["c2"]).all()
    assert bool((greedy["missing_mass"] > 0).all())


def test_without_measures_the_online_series_are_the_same():
    given = scenario(**CHANGING)
    fast, whole = (played(given, measure=measure).result() for measure in (False, True))
    assert set(whole) - set(fast) >= set(MODEL_SERIES)
    assert fast.equals(whole[list(fast)])


def test_a_world_drifts_from_generation_1_on_whoever_decides():
    still, moving = (played(scenario(drift=d), measure=False) for d in (None, Drift(scale=1.0)))
    assert torch.equal(still.whole("truth", 0), moving.whole("truth", 0))
    assert not torch.equal(still.whole("truth", 1), moving.whole("truth", 1))


# ---- saved, killed and restored

ORACLE = {"kind": "homeostatic", "learning_rate": 0.05, "effect": (1.0, -0.2), "memory": 40}
FALCON = {"kind": "falcon", "complexity": 20.0, "previous_epoch": True}
SAVED = {
    "memory_of_3": arm(gamma=300.0, window=3),
    "slice": arm("epsilon_slice", epsilon=0.4),
    "weights": arm("epsilon", epsilon=0.1, window=2, weights="inverse_propensity"),
    "elimination": arm("igw_elim", gamma=300.0, mellowness=0.02),
    "groups": arm("grouped_igw", gamma={"kind": "sqrt_t"}),
    "votes": arm("thompson_bootstrap", members=3),
    "falcon": arm(gamma=FALCON, window="all"),
    "online": arm("epsilon", epsilon=0.2, oracle=ORACLE),
}


@pytest.fixture(scope="module", params=SAVED)
def uninterrupted(request):
    """An arm in a world with drift, delay and outages, played to the end."""
    given = scenario(generations=5, dtype="float32" if request.param == "weights" else "float64", **CHANGING)
    return given, SAVED[request.param], play(given, SAVED[request.param], 7)


@pytest.mark.parametrize("killed_after", [1, 2, 4, 5])
def test_restored_at_any_generation_it_ends_as_if_uninterrupted(uninterrupted, killed_after, tmp_path):
    given, rule, whole = uninterrupted
    loop = GenerationLoop(given, rule, 7)
    for _ in range(killed_after):
        loop.step()
    loop.save(tmp_path / "loop")
    resumed = GenerationLoop(given, rule, 7)
    resumed.restore(tmp_path / "loop")
    assert resumed.generation == killed_after
    while resumed.generation < given.generations:
        resumed.step()
    assert resumed.result().identical(whole)


def test_play_goes_on_from_its_checkpoint(uninterrupted, tmp_path, monkeypatch):
    given, rule, whole = uninterrupted
    monkeypatch.setattr("apps.payments.generations.CHECKPOINT_SECONDS", -1.0)

    def stop(share, _):
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(given, rule, 7, checkpoint=tmp_path, progress=stop)
    reported = []
    found = play(given, rule, 7, checkpoint=tmp_path, progress=lambda share, what: reported.append((share, what)))
    assert found.identical(whole)
    # The third was played, and stopped before it was kept.
    assert reported == [(0.6, "generation 3"), (0.8, "generation 4"), (1.0, "generation 5")]
    assert play(given, rule, 7, checkpoint=tmp_path).identical(whole)


GIVEN, RULE = scenario(**CHANGING), arm(gamma=300.0, window=3)


@pytest.fixture
def states(tmp_path):
    """What was saved after one generation and after two."""
    loop = GenerationLoop(GIVEN, RULE, 0)
    for name in ("first", "second"):
        loop.step()
        loop.save(tmp_path / name)
    return tmp_path


def restored(folder):
    loop = GenerationLoop(GIVEN, RULE, 0)
    loop.restore(folder)
    begun = loop.generation
    while loop.generation < GIVEN.generations:
        loop.step()
        loop.save(folder)  # it can still be kept where it was
    again = GenerationLoop(GIVEN, RULE, 0)
    again.restore(folder)
    assert again.result().identical(loop.result())
    assert loop.result().identical(play(GIVEN, RULE, 0))
    return begun


def test_killed_between_the_steps_of_a_replacement_nothing_is_lost(states):
    # The old state is gone, the new one still has its working name.
    (states / "second").rename(states / "loop.new")
    assert restored(states / "loop") == 2
    assert not (states / "loop.new").exists()


def test_killed_while_the_old_state_is_removed_the_new_one_counts(states):
    (states / "first").rename(states / "loop")
    (states / "loop" / "state.safetensors").unlink()  # its state.json is left
    (states / "second").rename(states / "loop.new")
    assert restored(states / "loop") == 2


def test_killed_while_the_new_state_is_written_the_old_one_counts(states):
    (states / "first").rename(states / "loop")
    (states / "second").rename(states / "loop.new")
    (states / "loop.new" / "state.json").unlink()
    assert restored(states / "loop") == 1


def test_killed_in_the_first_save_it_starts_anew(states):
    shutil.copytree(states / "first", states / "loop.new")
    (states / "loop.new" / "state.json").unlink()
    assert restored(states / "loop") == 0
    assert restored(states / "never") == 0


# ---- what cannot be played


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["window=0"], "window = 0: must be at least 1, or all"),
        (["window=some"], "window"),
        (["exploration.rule=epsilon_slice", "window=3"], "window must be 1"),
        (["exploration.rule=epsilon_slice", "exploration.floor=0.1"], "floor and minimum must be 0"),
        (
            ["exploration.rule=epsilon_slice", "tune={parameter: minimum, grid: [0, 0.1]}"],
            "floor and minimum must be 0",
        ),
        (["exploration.gamma={kind: falcon}"], "a falcon schedule decides what is learned from; give all"),
        (["cap=0.5"], "cap = 0.5: must be greater than or equal to 1"),
        (["exploration.rule=epsilon", "tune={parameter: gamma, grid: [1, 2]}"], "epsilon has none"),
        (["tune={parameter: gamma, grid: [1]}"], "tune.grid: "),
        (["tune={parameter: gamma, grid: [1, -2]}"], "tune.grid: gamma cannot be -2: gamma = -2.0: must be at least 0"),
        (["tune={parameter: floor, grid: [0.1, 2]}"], "tune.grid: floor cannot be 2"),
        (["tune={parameter: temperature, grid: [0.1, 1]}"], "tune.parameter = temperature: igw has none"),
        (["oracle.kind=magic"], 'oracle.kind = "magic": must be one of'),
    ],
)
def test_an_impossible_arm_is_refused_in_one_line(overrides, message):
    with pytest.raises(InputError) as refused:
        load_values(Arm, ["name=a", "exploration.rule=igw", *overrides])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("payments=99", "payments = 99: must be"),
        ("generations=1", "generations = 1: must be"),
        ("duration=0", "duration = 0: must be greater than 0"),
        ("sizes.flags=4", "flags = 4: must be between 5 and"),
        ("drift.kind=magic", "drift.kind"),
        ("delay.never=2", "delay.never = 2.0: must be between 0 and 1"),
        ("outage.rate=-1", "outage.rate = -1.0: must be between 0 and 1"),
        ("dtype=int8", 'dtype = "int8": must be'),
        ("name=a b", "name"),
    ],
)
def test_an_impossible_scenario_is_refused_in_one_line(override, message):
    with pytest.raises(InputError) as refused:
        load_values(Scenario, ["name=a", override])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_a_rule_needs_of_the_oracle_is_nothing_before_the_first():
    assert GenerationLoop(GIVEN, RULE, 0).learned == Learned()
    state = GIVEN.world(0).reset(5, torch.Generator().manual_seed(0))
    mask = dense_mask(state.allowed, state.forced, 5)
    assert torch.equal(GenerationLoop(GIVEN, RULE, 0).policy(state, mask), bandits.uniform(mask))
