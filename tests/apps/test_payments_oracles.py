import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.optimize import check_grad

from apps.payments import metrics
from apps.payments.oracles import (
    ConstantLabels,
    FactoredOracle,
    FactoredSettings,
    GBDTSettings,
    HopfieldSettings,
    ImbalanceSettings,
    MLPSettings,
    OracleDiverged,
    Rows,
    VWSettings,
    factored,
    fit_oracle,
    gbdt,
    imbalance,
    load_oracle,
    mlp,
    unknown_counts,
)
from apps.payments.oracles.rows import numeric_features
from core.errors import InputError
from simulators.payments.context import CATEGORIES, NUMERICS, PaymentContext, Sizes, flag_bits

SIZES = Sizes(issuers=12, merchants=6, countries=4)
NONE = ImbalanceSettings()
TRAINED = {"epochs": 6, "batch": 128, "learning_rate": 3e-3}
ORACLES = {
    "factored": FactoredSettings(),
    "gbdt": GBDTSettings(iterations=20),
    "lightgbm": GBDTSettings(backend="lightgbm", iterations=20),
    "xgboost": GBDTSettings(backend="xgboost", iterations=20),
    "mlp": MLPSettings(width=32, embedding=4, **TRAINED),
    "hopfield": HopfieldSettings(width=32, embedding=4, memory=256, key=8, value=8, **TRAINED),
    "vw": VWSettings(),
    "vw squared": VWSettings(loss="squared", learning_rate=0.05),
}
LIBRARY = {"gbdt": "sklearn", "lightgbm": "lightgbm", "xgboost": "xgboost", "vw": "vowpalwabbit"}


@pytest.fixture(params=ORACLES)
def settings(request):
    if library := LIBRARY.get(request.param.split()[0]):
        pytest.importorskip(library)
    return ORACLES[request.param]


def payments(n, sizes=SIZES, seed=0):
    g = torch.Generator().manual_seed(seed)
    levels = {name: torch.randint(size, (n,), generator=g) for name, size in sizes.levels.items()}
    u = torch.rand(len(NUMERICS), n, generator=g, dtype=torch.float64)
    numbers = {
        "log_amount": 9 * u[0],
        "cross_border": (u[1] < 0.5).double(),
        "hour": 24 * u[2],
        "expiry_days": 1420 * u[3] - 20,
        "token_available": (u[4] < 0.6).double(),
        "stored": (u[5] < 0.3).double(),
        "attempt": (4 * u[6]).floor(),
    }
    return PaymentContext(**levels, **numbers)


def truth(context, sizes=SIZES):
    """Approval probabilities in the class of the factored oracle, about 0.85 on average."""
    g = torch.Generator().manual_seed(99)
    effects = torch.randn(sizes.issuers, 1 + sizes.flags, generator=g, dtype=torch.float64)[context.issuer]
    bits = flag_bits(sizes.flags)
    return (2.2 + effects[:, :1] - 0.1 * context.log_amount[:, None] + 0.8 * effects[:, 1:] @ bits.T).sigmoid()


def answered(n=3000, sizes=SIZES, seed=0):
    context = payments(n, sizes, seed)
    g = torch.Generator().manual_seed(seed + 500)
    action = torch.randint(sizes.actions, (n,), generator=g)
    chance = truth(context, sizes).gather(1, action[:, None]).squeeze(1)
    return Rows(context, action, (torch.rand(n, generator=g, dtype=torch.float64) < chance).double())


def random_factored(sizes=SIZES, seed=4):
    size = len(factored.Coefficients(sizes))
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return FactoredOracle(FactoredSettings(), sizes, 0.3 * values)


# what all oracles have in common


def test_every_oracle_beats_the_best_constant_on_new_payments(settings):
    fitted, new = settings.fit(answered(), SIZES), answered(3000, seed=1)
    predicted = fitted.predict(new.context, new.action).clamp(1e-3, 1 - 1e-3)
    constant = new.reward.mean().expand_as(new.reward)
    assert metrics.log_loss(predicted, new.reward) < metrics.log_loss(constant, new.reward) - 0.02
    assert metrics.roc_auc(predicted, new.reward) > 0.6


def test_prediction_of_one_action_is_that_action_among_all(settings):
    rows = answered(700)
    fitted = settings.fit(rows, SIZES)
    everything = fitted.predict_all(rows.context)
    assert everything.shape == (700, 32)
    assert everything.dtype == torch.float64
    assert ((everything >= 0) & (everything <= 1)).all()
    expected = everything.gather(1, rows.action[:, None]).squeeze(1)
    assert torch.allclose(fitted.predict(rows.context, rows.action), expected, atol=1e-6)


def test_a_loaded_oracle_predicts_bit_for_bit_what_the_saved_one_did(settings, tmp_path):
    rows = answered(700)
    fitted = settings.fit(rows, SIZES)
    fitted.save(tmp_path / "oracle")
    assert sorted(p.name for p in (tmp_path / "oracle").iterdir()) == ["oracle.json", "oracle.safetensors"]
    loaded = load_oracle(tmp_path / "oracle")
    assert (loaded.settings, loaded.sizes, loaded.parameters) == (settings, SIZES, fitted.parameters)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(loaded.predict_all(rows.context, dtype), fitted.predict_all(rows.context, dtype))


def test_one_seed_makes_one_model(settings):
    rows = answered(500)
    first, second = (settings.fit(rows, SIZES, seed=5) for _ in range(2))
    assert torch.equal(first.predict_all(rows.context), second.predict_all(rows.context))


def test_rows_of_one_label_are_not_learned_from(settings):
    rows = answered(200)
    with pytest.raises(ConstantLabels, match="all 200 rows have the reward 1"):
        settings.fit(replace(rows, reward=torch.ones(200, dtype=torch.float64)), SIZES)
    with pytest.raises(ConstantLabels, match="no rows"):
        settings.fit(rows.take(slice(0, 0)), SIZES)
    weight = rows.reward.clone()
    with pytest.raises(ConstantLabels, match="reward 1"):
        settings.fit(replace(rows, weight=weight), SIZES)


def test_a_feature_that_is_not_a_number_is_refused_by_column_and_row(settings):
    rows = answered(300)
    amount = rows.context.log_amount.clone()
    amount[7] = torch.nan
    broken = replace(rows.context, log_amount=amount)
    with pytest.raises(InputError, match=r"log_amount\[7\] is nan"):
        settings.fit(replace(rows, context=broken), SIZES)
    with pytest.raises(InputError, match=r"log_amount\[7\] is nan"):
        settings.fit(rows, SIZES).predict_all(broken)


def test_levels_that_nobody_knows_share_one_bucket(settings):
    rows = answered(600)
    fitted = settings.fit(rows, SIZES)
    below, above = (
        replace(rows.context, issuer=torch.full((600,), -1), merchant=torch.full((600,), code)) for code in (-3, 6)
    )
    predicted = fitted.predict_all(below)
    assert predicted.isfinite().all()
    assert torch.equal(predicted, fitted.predict_all(above))
    assert unknown_counts(above, SIZES) == dict.fromkeys(CATEGORIES, 0) | {"issuer": 600, "merchant": 600}


def test_a_level_without_rows_is_an_unknown_one(settings):
    rows = answered(1500)
    rows = rows.take(rows.context.issuer != 3)
    fitted = settings.fit(rows, SIZES)
    unseen, unknown = (replace(rows.context, issuer=torch.full((len(rows),), code)) for code in (3, 12))
    assert torch.allclose(fitted.predict_all(unseen), fitted.predict_all(unknown), atol=1e-12)


def test_predictions_in_single_precision_are_those_in_double(settings):
    fitted, single = settings.fit(answered(600), SIZES), payments(600).to(dtype=torch.float32)
    assert fitted.predict_all(single).dtype == torch.float32
    double = fitted.predict_all(single.to(dtype=torch.float64))
    assert torch.allclose(fitted.predict_all(single).double(), double, atol=1e-5)


def test_chunks_do_not_show_and_are_halved_when_memory_runs_out(settings, monkeypatch):
    rows = answered(300)
    fitted = settings.fit(rows, SIZES)
    whole = fitted.predict_all(rows.context)
    asked, original = [], fitted._approval

    def scarce(context, dtype):
        asked.append(len(context))
        if len(context) > 50:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(context, dtype)

    monkeypatch.setattr(fitted, "_approval", scarce)
    monkeypatch.setattr(fitted, "_chunk", lambda device: 160)
    assert torch.allclose(fitted.predict_all(rows.context), whole, atol=1e-6)
    assert asked[:3] == [160, 80, 40]
    monkeypatch.setattr(fitted, "_approval", lambda context, dtype: scarce(payments(60), dtype))
    with pytest.raises(torch.OutOfMemoryError):
        fitted.predict_all(rows.context)


def test_whole_weights_are_repeated_rows():
    rows = answered(400)
    times = torch.randint(0, 4, (400,), generator=torch.Generator().manual_seed(0))
    weighted = FactoredSettings(iterations=2000).fit(replace(rows, weight=times.double()), SIZES)
    repeated = FactoredSettings(iterations=2000).fit(rows.take(torch.arange(400).repeat_interleave(times)), SIZES)
    difference = weighted.predict_all(rows.context) - repeated.predict_all(rows.context)
    assert difference.abs().max() < 1e-3


# rows


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("action", 32, r"action\[5\] is 32, must be in \[0, 31\]"),
        ("reward", 1.5, r"reward\[5\] is 1.5, must be in \[0, 1\]"),
        ("reward", torch.nan, r"reward\[5\] is nan"),
        ("weight", -1.0, r"weight\[5\] is -1.0, must be at least 0"),
        ("weight", torch.inf, r"weight\[5\] is inf"),
    ],
)
def test_impossible_rows_are_refused(column, value, message):
    rows = replace(answered(50), weight=torch.ones(50))
    broken = getattr(rows, column).clone()
    broken[5] = value
    with pytest.raises(InputError, match=message):
        FactoredSettings().fit(replace(rows, **{column: broken}), SIZES)


def test_columns_of_other_lengths_and_soft_labels_of_a_classifier_are_refused():
    rows = answered(50)
    with pytest.raises(InputError, match="reward: has 49 rows, the context has 50"):
        replace(rows, reward=rows.reward[1:]).check(SIZES)
    soft = replace(rows, reward=rows.reward.clamp(0.2, 0.8))
    soft.check(SIZES)
    with pytest.raises(InputError, match="gbdt predicts a class"):
        GBDTSettings().fit(soft, SIZES)


def test_joined_rows_keep_their_order_and_count_one_where_a_part_has_no_weights():
    rows = answered(10)
    joined = Rows.cat([rows.take(slice(0, 4)), replace(rows.take(slice(4, 10)), weight=torch.full((6,), 3.0).double())])
    assert torch.equal(joined.action, rows.action)
    assert joined.weight.tolist() == [1.0] * 4 + [3.0] * 6
    assert Rows.cat([rows, rows]).weight is None


# factored


def test_score_is_the_formula_written_out_payment_by_payment():
    fitted, context = random_factored(), payments(20)
    layout = factored.Coefficients(SIZES)
    common, effects, pairs = (x.numpy() for x in layout.split(fitted.coefficients))
    features = numeric_features(context).numpy()
    assert features[0] == pytest.approx((context.log_amount.numpy() - 3.6) / 1.2)
    assert features[6] == pytest.approx(np.cos(2 * np.pi * (context.hour.numpy() - 14) / 24))
    expected = np.zeros((20, 32))
    for i in range(20):
        levels = [int(getattr(context, name)[i]) for name in CATEGORIES]
        numbers = [1.0, *features[:, i]]
        c = sum(common[j] * x for j, x in enumerate(numbers))
        c += common[9 + levels[0]] + common[21 + levels[1]] + common[27 + levels[2]]
        c += common[31 + levels[3]] + common[34 + levels[4]] + common[37 + levels[5]]
        for a in range(32):
            b = [a >> f & 1 for f in range(5)]
            z, pair = c, 0
            for f in range(5):
                d = sum(effects[f, j] * numbers[j] for j in range(5))
                d += effects[f, 5 + levels[0]] + effects[f, 17 + levels[1]] + effects[f, 23 + levels[2]]
                z += b[f] * d
                for h in range(f + 1, 5):
                    z += b[f] * b[h] * pairs[pair]
                    pair += 1
            expected[i, a] = 1 / (1 + np.exp(-z))
    assert fitted.predict_all(context).numpy() == pytest.approx(expected, abs=1e-12)


def test_design_times_coefficients_is_the_score_that_is_predicted():
    fitted, rows = random_factored(), answered(300)
    issuer = torch.where(torch.arange(300) % 7 == 0, -1, rows.context.issuer)
    context = replace(rows.context, issuer=issuer)
    design, order = factored.Coefficients(SIZES).design(context, rows.action)
    expected = fitted.predict(context, rows.action).logit()[order]
    assert design @ fitted.coefficients.numpy() == pytest.approx(expected.numpy(), abs=1e-10)


@pytest.mark.parametrize("focus", [0.0, 2.0])
def test_gradient_of_the_loss_is_its_finite_difference(focus):
    rows, rng = answered(200), np.random.default_rng(0)
    layout = factored.Coefficients(SIZES)
    design, order = layout.design(rows.context, rows.action)
    ridge = layout.ridge(common=2, effect_levels=8, intercept=1e-4)
    reward, weight = rows.reward.numpy()[order], rng.uniform(0, 3, 200)
    objective = factored.penalised_loss(design, reward, ridge, weight, focus)
    point = rng.normal(0, 0.3, len(layout))
    error = check_grad(lambda x: objective(x)[0], lambda x: objective(x)[1], point, epsilon=1e-7)
    assert error < 1e-6 * np.linalg.norm(objective(point)[1])


def test_penalties_are_those_of_the_specification():
    layout = factored.Coefficients(SIZES)
    ridge = torch.from_numpy(layout.ridge(common=2, effect_levels=8, intercept=1e-4))
    common, effects, pairs = layout.split(ridge)
    assert common.tolist() == [1e-4] + [2.0] * (len(common) - 1)
    assert (effects[:, :5] == 2).all()
    assert (effects[:, 5:] == 8).all()
    assert pairs.tolist() == [2.0] * 10


def test_fit_is_the_minimum_that_scikit_learn_finds():
    linear = pytest.importorskip("sklearn.linear_model")
    rows, layout = answered(800), factored.Coefficients(SIZES)
    fitted = FactoredSettings(iterations=3000).fit(rows, SIZES)
    design, order = layout.design(rows.context, rows.action)
    root = np.sqrt(layout.ridge(common=2, effect_levels=8, intercept=1e-4))
    # A coefficient times the root of its penalty has penalty 1, which is scikit-learn's C = 1.
    model = linear.LogisticRegression(C=1.0, fit_intercept=False, solver="newton-cholesky", tol=1e-10)
    model.fit(design.toarray() / root, rows.reward.numpy()[order])
    theirs = FactoredOracle(FactoredSettings(), SIZES, torch.from_numpy(model.coef_[0] / root))
    assert (fitted.predict_all(rows.context) - theirs.predict_all(rows.context)).abs().max() < 1e-3
    objective = factored.penalised_loss(design, rows.reward.numpy()[order], root**2)
    least, slope = objective(theirs.coefficients.numpy())
    assert objective(fitted.coefficients.numpy())[0] == pytest.approx(least, rel=1e-6)
    assert np.abs(slope).max() < 1e-6


def test_forty_iterations_come_within_a_hundredth_of_the_minimum():
    rows = answered(2000)
    layout = factored.Coefficients(SIZES)
    design, order = layout.design(rows.context, rows.action)
    ridge = layout.ridge(common=2, effect_levels=8, intercept=1e-4)
    objective = factored.penalised_loss(design, rows.reward.numpy()[order], ridge)
    short, long = (FactoredSettings(iterations=i).fit(rows, SIZES).coefficients.numpy() for i in (40, 3000))
    assert objective(long)[0] <= objective(short)[0] < 1.01 * objective(long)[0]


def test_amounts_beyond_all_bounds_diverge_with_a_typed_error():
    rows = answered(100)
    with pytest.raises(OracleDiverged, match="factored"):
        FactoredSettings().fit(replace(rows, context=replace(rows.context, log_amount=rows.reward * 1e200)), SIZES)


# trees


def captured(monkeypatch, backend):
    """The library's own fitted model, whenever one is fitted."""
    found = []
    if backend == "sklearn":
        model = pytest.importorskip("sklearn.ensemble").HistGradientBoostingClassifier
        fit = model.fit
        monkeypatch.setattr(model, "fit", lambda *a, **k: found.append(fit(*a, **k)) or found[-1])
        return found, lambda x, codes: found[-1].predict_proba(x)[:, 1]
    library = pytest.importorskip(backend)
    train = library.train
    monkeypatch.setattr(library, "train", lambda *a, **k: found.append(train(*a, **k)) or found[-1])
    if backend == "lightgbm":
        return found, lambda x, codes: found[-1].predict(x)
    return found, lambda x, codes: found[-1].predict(
        library.DMatrix(x, feature_types=["c" if i in codes else "float" for i in range(x.shape[1])])
    )


@pytest.mark.parametrize(("backend", "tolerance"), [("sklearn", 1e-12), ("lightgbm", 1e-12), ("xgboost", 1e-6)])
@pytest.mark.parametrize("issuers", [40, 400])
def test_all_actions_at_once_are_what_the_library_predicts_one_by_one(backend, tolerance, issuers, monkeypatch):
    sizes = Sizes(issuers=issuers, merchants=6, countries=4)
    found, predict = captured(monkeypatch, backend)
    rows = answered(4000, sizes)
    # XGBoost compares in single precision.
    rows = replace(rows, context=rows.context.to(dtype=torch.float32).to(dtype=torch.float64))
    fitted = GBDTSettings(backend=backend, iterations=15).fit(rows, sizes)
    assert fitted.columns.categorical == (issuers == 40, *[True] * 5)
    assert len(found) == 1
    new = payments(300, sizes, seed=8).to(dtype=torch.float32).to(dtype=torch.float64)
    new = replace(new, issuer=torch.where(torch.arange(300) % 5 == 0, -1, new.issuer), merchant=new.merchant + 2)
    values = fitted.columns.values(new, sizes).T.numpy()
    codes = [i for i, by_level in enumerate(fitted.columns.categorical) if by_level]
    values[:, codes] = np.where(values[:, codes] == gbdt.MISSING, np.nan, values[:, codes])
    pairs = np.hstack([np.repeat(values, 32, 0), np.tile(flag_bits(5).numpy(), (300, 1))])
    expected = predict(pairs, codes).reshape(300, 32)
    assert len(np.unique(expected)) > 100
    assert fitted.predict_all(new).numpy() == pytest.approx(expected, abs=tolerance)


def test_many_levels_are_encoded_by_their_shrunk_approval_rate_without_the_rows_own_answer():
    sizes = Sizes(issuers=300, merchants=6, countries=4)
    rows = answered(3000, sizes)
    columns, values = gbdt.Columns.of(rows, sizes, seed=1)
    assert columns.categorical[0] is False
    mean, own = rows.reward.mean(), rows.context.issuer == 17
    shrunk = (rows.reward[own].sum() + gbdt.PRIOR_ROWS * mean) / (own.sum() + gbdt.PRIOR_ROWS)
    assert float(columns.tables[0][17]) == pytest.approx(float(shrunk))
    assert float(columns.tables[0][300]) == pytest.approx(float(mean))
    row = int(own.nonzero()[0])
    flipped = rows.reward.clone()
    flipped[row] = 1 - flipped[row]
    other = int((~own & (flipped != rows.reward[row])).nonzero()[0])
    flipped[other] = 1 - flipped[other]  # keeps the mean
    assert gbdt.Columns.of(replace(rows, reward=flipped), sizes, seed=1)[1][row, 0] == values[row, 0]


# networks


def test_split_first_layer_is_the_layer_over_the_joined_inputs():
    fitted, context = ORACLES["mlp"].fit(answered(300), SIZES), payments(40)
    network = fitted.network
    inputs = mlp.Inputs.of(context, SIZES, "cpu", torch.float32)
    described, bits = network.describe(inputs), flag_bits(5, dtype=torch.float32)
    weights = torch.cat([network.context.weight, network.action.weight], 1)
    expected = torch.empty(40, 32)
    for a in range(32):
        joined = torch.cat([described, bits[a].expand(40, -1)], 1)
        hidden = (joined @ weights.T + network.context.bias).relu()
        hidden = (hidden @ network.hidden.weight.T + network.hidden.bias).relu()
        expected[:, a] = (hidden @ network.score.weight.T + network.score.bias).squeeze(1).sigmoid()
    assert torch.allclose(fitted.predict_all(context, torch.float32), expected, atol=1e-6)


def test_an_epoch_without_a_finite_loss_is_undone_and_repeated_with_smaller_steps(monkeypatch):
    rows, calls, original = answered(600), [], mlp.focal_loss

    def spoiled(logits, reward, focus):
        calls.append(len(reward))
        return original(logits, reward, focus) * (torch.nan if len(calls) == 2 else 1.0)

    monkeypatch.setattr(mlp, "focal_loss", spoiled)
    settings = ORACLES["mlp"].model_copy(update={"epochs": 2})
    fitted = settings.fit(rows, SIZES)
    assert len(calls) == 3 * 5  # the first epoch twice
    assert fitted.predict_all(rows.context).isfinite().all()


def test_a_network_that_stays_without_a_finite_loss_is_given_up(monkeypatch):
    calls = []
    monkeypatch.setattr(mlp, "focal_loss", lambda logits, *_: calls.append(0) or logits * torch.nan)
    with pytest.raises(OracleDiverged, match="mlp: the loss of epoch 1 is not finite"):
        MLPSettings().fit(answered(100), SIZES)
    assert len(calls) == 1 + mlp.TRIES


def test_a_last_step_to_weights_that_are_not_finite_is_seen(monkeypatch):
    # A finite loss, whose gradient is not: the slope of the root at 0.
    monkeypatch.setattr(mlp, "focal_loss", lambda logits, *_: (0 * logits).sqrt())
    with pytest.raises(OracleDiverged):
        MLPSettings(epochs=1).fit(answered(100), SIZES)


def test_focal_loss_is_the_log_loss_at_focus_zero_and_its_formula_elsewhere():
    logits, reward = torch.tensor([-2.0, 0.5, 3.0]).double(), torch.tensor([1.0, 0.0, 1.0]).double()
    p = torch.where(reward == 1, logits.sigmoid(), 1 - logits.sigmoid())
    assert torch.allclose(mlp.focal_loss(logits, reward), -p.log())
    assert torch.allclose(mlp.focal_loss(logits, reward, 2.0), -((1 - p) ** 2) * p.log())


# memory


def test_a_training_row_does_not_retrieve_its_own_answer():
    settings, rows = ORACLES["hopfield"], answered(300)
    network = settings.fit(rows, SIZES).network
    assert network.remembered == 256
    inputs, index = mlp.Inputs.of(rows.context, SIZES, "cpu", torch.float32), torch.arange(300)
    before, open_before = network.encode(inputs, index), network.encode(inputs)
    network.answers[256 - 1, -1] += 1  # of the last row
    after, open_after = network.encode(inputs, index), network.encode(inputs)
    assert torch.equal(before[-1], after[-1])
    assert not torch.equal(before[-2], after[-2])
    assert not torch.equal(open_before[-1], open_after[-1])


# Vowpal Wabbit


def test_weights_read_out_predict_what_vowpal_wabbit_predicts(monkeypatch):
    library = pytest.importorskip("vowpalwabbit")
    workspaces, rows = [], answered(400)

    class Kept(library.Workspace):
        def finish(self):
            workspaces.append(self)

    monkeypatch.setattr(library, "Workspace", Kept)
    settings = VWSettings(passes=2)
    fitted = settings.fit(rows, SIZES)
    lines = [line.split("| ")[1] for line in settings._examples(rows, factored.Coefficients(SIZES))]
    theirs = torch.tensor([workspaces[0].predict(f"| {line}") for line in lines], dtype=torch.float64)
    assert torch.allclose(fitted.predict(rows.context, rows.action), theirs.sigmoid(), atol=1e-5)


# rare declines


@pytest.mark.parametrize("method", ["downsample", "class_weight", "focal"])
@pytest.mark.parametrize("recalibration", ["platt", "isotonic"])
def test_resampling_distorts_the_probabilities_and_recalibration_sets_them_right(method, recalibration, tmp_path):
    options = ImbalanceSettings(method=method, keep=0.15, recalibration=recalibration)
    rows, new = answered(6000), answered(4000, seed=1)
    fitted = fit_oracle(FactoredSettings(), options, rows, SIZES, seed=3)
    raw = metrics.reliability(fitted.raw.predict(new.context, new.action), new.reward).expected_error
    right = metrics.reliability(fitted.predict(new.context, new.action), new.reward).expected_error
    assert right < 0.035 < 0.06 < raw
    mask = torch.ones(4000, 32, dtype=torch.bool)
    expected = metrics.mean_gap(FactoredSettings().fit(rows, SIZES).predict_all(new.context), mask)
    of_raw, of_right = fitted.gaps(new.context, mask)
    assert abs(of_right - expected) < abs(of_raw - expected)
    fitted.save(tmp_path)
    assert torch.equal(load_oracle(tmp_path).predict_all(new.context), fitted.predict_all(new.context))


def test_correction_undoes_the_sampling_of_approvals():
    f = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    for keep in (0.05, 0.3, 1.0):
        sampled = keep * f / (keep * f + 1 - f)
        assert torch.allclose(imbalance.corrected(sampled, keep), f, atol=1e-12)


def test_platt_solves_the_likelihood_equations_with_his_targets():
    rng = np.random.default_rng(0)
    f = rng.uniform(0.05, 0.95, 2000)
    logit = np.log(f / (1 - f))
    r, w = (rng.random(2000) < 1 / (1 + np.exp(-0.5 * logit - 1))).astype(float), rng.uniform(0.5, 2, 2000)
    found = imbalance.Platt.fit(f, r, w)
    assert found.slope == pytest.approx(0.5, abs=0.1)
    assert found.intercept == pytest.approx(1.0, abs=0.15)
    high, low = (w @ r + 1) / (w @ r + 2), 1 / (w @ (1 - r) + 2)
    residual = found(torch.from_numpy(f)).numpy() - np.where(r == 1, high, low)
    assert abs(w @ residual) < 1e-2
    assert abs(w @ (residual * logit)) < 1e-2


def test_platt_never_reverses_an_order():
    f = np.linspace(0.1, 0.9, 100)
    assert imbalance.Platt.fit(f, (f < 0.5).astype(float), np.ones(100)).slope == 0


def test_isotonic_levels_are_scikit_learns_and_the_map_rises_through_their_centres():
    reference = pytest.importorskip("sklearn.isotonic")
    rng = np.random.default_rng(1)
    f = rng.uniform(0, 1, 500).round(2)
    r, w = (rng.random(500) < f**2).astype(float), rng.uniform(0.5, 2, 500)
    found = imbalance.Isotonic.fit(f, r, w)
    theirs = np.unique(reference.IsotonicRegression().fit_transform(f, r, sample_weight=w).round(9))
    assert np.array(found.level) == pytest.approx(np.clip(theirs, 1 / 502, 501 / 502), abs=1e-8)
    centre = torch.tensor(found.centre, dtype=torch.float64)
    assert found(centre).numpy() == pytest.approx(np.array(found.level), abs=1e-12)
    inside = torch.linspace(found.centre[0], found.centre[-1], 300, dtype=torch.float64)
    assert (found(inside).diff() > 0).all()


def test_methods_without_recalibration_or_without_the_loss_are_refused():
    with pytest.raises(ValidationError, match="distorts the gaps"):
        ImbalanceSettings(method="focal", recalibration="none")
    with pytest.raises(InputError, match="gbdt has no such loss"):
        fit_oracle(GBDTSettings(), ImbalanceSettings(method="focal"), answered(500), SIZES)


def test_held_back_rows_of_one_label_are_not_calibrated_on():
    rows = answered(60)
    rows = replace(rows, reward=(torch.arange(60) > 0).double())
    with pytest.raises(ConstantLabels):
        fit_oracle(FactoredSettings(), ImbalanceSettings(method="class_weight"), rows, SIZES)


# files


def test_damaged_or_foreign_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"oracle\.json: no such file"):
        load_oracle(tmp_path)
    random_factored().save(tmp_path)
    data = json.loads((tmp_path / "oracle.json").read_text())
    weights = (tmp_path / "oracle.safetensors").read_bytes()
    (tmp_path / "oracle.safetensors").write_bytes(weights[:-1] + b"x")
    with pytest.raises(InputError, match="checksum"):
        load_oracle(tmp_path)
    (tmp_path / "oracle.safetensors").write_bytes(weights)
    (tmp_path / "oracle.json").write_text(json.dumps(data | {"settings": {"kind": "pickle"}}))
    with pytest.raises(InputError, match="not a saved oracle"):
        load_oracle(tmp_path)
    (tmp_path / "oracle.json").write_text(json.dumps(data | {"sizes": data["sizes"] | {"issuers": 99}}))
    with pytest.raises(InputError, match="coefficients: have shape"):
        load_oracle(tmp_path)
    (tmp_path / "oracle.safetensors").unlink()
    with pytest.raises(InputError, match=r"oracle\.safetensors: no such file"):
        load_oracle(tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_devices_agree(settings, tmp_path):
    rows = answered(3000)
    fitted = settings.fit(rows, SIZES, device="cuda")
    there = fitted.predict_all(rows.context.to("cuda", torch.float32))
    assert there.is_cuda
    fitted.save(tmp_path)
    here = load_oracle(tmp_path).predict_all(rows.context.to(dtype=torch.float32))
    assert torch.allclose(there.cpu(), here, atol=1e-5)
