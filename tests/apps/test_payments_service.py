import asyncio
import errno
import json
import os
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from apps.payments import service
from apps.payments.counters import COUNTERS, PREFIX
from apps.payments.engine import Conflict, Engine, Reward, fingerprints
from apps.payments.exploration import Exploration, Learned
from apps.payments.log.join import join_log
from apps.payments.log.reading import parquet_files
from apps.payments.log.schema import key_array, transaction_key
from apps.payments.log.tables import contexts, masks
from apps.payments.policy import Policy, counters_of
from apps.payments.service import create_app
from core.bandits import uniform
from core.errors import InputError
from simulators.payments.context import CATEGORIES, NUMERICS, PaymentContext, Sizes
from tests.apps.payments_log_cases import SIZES, oracle, payments, saved_policy

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def policy(tmp_path):
    return saved_policy(tmp_path / "policy")


@pytest.fixture
def engine(tmp_path, policy):
    engine = Engine(policy, tmp_path / "log")
    yield engine
    engine.close()


def ids(n, start=0):
    return [f"t{i}" for i in range(start, start + n)]


def ask(engine, names, context, mask):
    return engine.decide(["shop"] * len(names), names, context, mask).result(10)


def chosen(answers):
    return [(answer.action, answer.propensity) for answer in answers]


def logged(folder):
    paths, damaged = parquet_files(folder / "decisions")
    assert not damaged
    return pa.concat_tables(parquet.read_table(path, partitioning=None) for path in paths)


# the policy


def test_a_decision_is_the_same_in_whatever_batch_and_by_the_stored_policy(tmp_path, policy):
    context, mask = payments(500)
    counters = counters_of(key_array([transaction_key("shop", name) for name in ids(500)]))
    whole = policy.decide(context, mask, counters)
    again = Policy.load(tmp_path / "policy")
    assert again.model_sha == policy.model_sha
    for size in (1, 3, 64, 250):
        for start in range(0, 500, size)[:20]:
            rows = slice(start, start + size)
            part = again.decide(context.take(rows), mask[rows], counters[rows])
            assert torch.equal(part.action, whole.action[rows])
            assert torch.equal(part.propensity, whole.propensity[rows])


def test_actions_are_drawn_by_their_logged_propensity():
    policy = Policy("p", 0, oracle(), SIZES, Exploration(rule="igw", gamma=5.0))
    context, mask = payments(1)
    n = 20_000
    counters = torch.randint(2**32, (n, 4), generator=torch.Generator().manual_seed(0))
    many = torch.zeros(n, dtype=torch.int64)
    found = policy.decide(context.take(many), mask[many], counters)
    share = torch.bincount(found.action, minlength=32) / n
    expected = policy.probabilities(context, mask)[0]
    assert (share - expected).abs().max() < 4 * (0.25 / n) ** 0.5
    assert torch.equal(found.propensity, expected[found.action])
    assert mask[0, found.action].all()
    other = Policy("q", 0, oracle(), SIZES, Exploration(rule="igw", gamma=5.0))
    differ = other.decide(context.take(many), mask[many], counters).action != found.action
    # Two independent draws agree with probability sum p^2.
    assert differ.double().mean() == pytest.approx(1 - float(expected.square().sum()), abs=0.02)


def test_the_coin_of_the_exploration_slice_has_its_share_and_its_actions_are_uniform():
    policy = Policy("p", 0, oracle(), SIZES, Exploration(rule="epsilon_slice", epsilon=0.3))
    context, mask = payments(1)
    n = 20_000
    many = torch.zeros(n, dtype=torch.int64)
    counters = torch.randint(2**32, (n, 4), generator=torch.Generator().manual_seed(1))
    found = policy.decide(context.take(many), mask[many], counters)
    assert found.coin.double().mean() == pytest.approx(0.3, abs=0.015)
    share = torch.bincount(found.action[found.coin], minlength=32) / found.coin.sum()
    assert (share - uniform(mask)[0]).abs().max() < 0.03
    # Outside the slice every action is the best one.
    assert found.gap[~found.coin].max() == 0


def test_gap_is_the_predicted_loss_of_the_action_taken(policy):
    context, mask = payments(50)
    found = policy.decide(context, mask, torch.zeros(50, 4, dtype=torch.int64))
    scores = policy.oracles[0].predict_all(context, torch.float64)
    best = torch.where(mask, scores, -torch.inf).amax(1)
    assert torch.allclose(found.gap, best - scores.gather(1, found.action[:, None]).squeeze(1), atol=1e-14)
    assert (found.gamma == 50).all()


@pytest.mark.parametrize(
    ("rule", "members", "learned"),
    [
        ("uniform", 0, Learned()),
        ("thompson_bootstrap", 3, Learned()),
        ("igw_elim", 1, Learned(700, torch.arange(32) + 1)),
        ("grouped_igw", 1, Learned(700, None, torch.arange(32) % 5)),
    ],
)
def test_every_kind_of_policy_is_stored_whole(tmp_path, rule, members, learned):
    models = [oracle(seed=seed) for seed in range(members)]
    used = models[0] if members == 1 else models or None
    policy = Policy("p", 2, used, SIZES, Exploration(rule=rule), learned).save(tmp_path)
    back = Policy.load(tmp_path)
    context, mask = payments(20)
    assert torch.equal(back.probabilities(context, mask), policy.probabilities(context, mask))
    assert (back.policy_id, back.generation, back.model_sha) == ("p", 2, policy.model_sha)


def test_impossible_policies_and_damaged_files_are_refused(tmp_path, policy):
    with pytest.raises(InputError, match="rule = igw: needs an oracle"):
        Policy("p", 0, None, SIZES, Exploration(rule="igw"))
    with pytest.raises(InputError, match="thompson_bootstrap: cannot use 1 oracles"):
        Policy("p", 0, oracle(), SIZES, Exploration(rule="thompson_bootstrap"))
    with pytest.raises(InputError, match="no such file"):
        Policy.load(tmp_path / "none")
    oracle(seed=9).save(tmp_path / "policy" / "oracle")
    with pytest.raises(InputError, match=r"is not the file that .*policy\.json names"):
        Policy.load(tmp_path / "policy")


# the engine


def test_a_transaction_has_one_decision_whenever_and_with_whatever_it_is_asked_for(tmp_path, policy, engine):
    context, mask = payments(60)
    first = ask(engine, ids(60), context, mask)
    assert not any(answer.repeated for answer in first)
    for rows in (slice(0, 1), slice(10, 47)):
        again = ask(engine, ids(60)[rows], context.take(rows), mask[rows])
        assert all(answer.repeated for answer in again)
        assert chosen(again) == chosen(first[rows])
    twice = torch.tensor([59, 59, 3])
    assert chosen(ask(engine, ["t59", "t59", "t3"], context.take(twice), mask[twice])) == chosen(
        [first[59], first[59], first[3]]
    )
    more, more_mask = payments(2, seed=1)
    pair = torch.tensor([0, 0])
    new = ask(engine, ["new", "new"], more.take(pair), more_mask[pair])
    assert chosen(new)[0] == chosen(new)[1]
    assert (engine.counters["decisions"], engine.counters["duplicate_decisions"]) == (61, 1 + 37 + 3 + 1)
    engine.close()
    table = logged(tmp_path / "log")
    assert len(table) == len(set(table["decision_id"].to_pylist())) == 61
    mine = {answer.decision_id: (answer.action, answer.propensity) for answer in first}
    for row in table.to_pylist():
        if row["decision_id"] in mine:
            assert (row["action"], row["propensity"]) == mine[row["decision_id"]]
    decided = policy.decide(contexts(table), masks(table, 32), counters_of(key_array(table["decision_id"].to_pylist())))
    assert decided.action.tolist() == table["action"].to_pylist()
    assert decided.propensity.tolist() == table["propensity"].to_pylist()
    assert set(table["model_sha"].to_pylist()) == {policy.model_sha}


def test_a_restart_with_another_policy_answers_what_the_first_one_decided(tmp_path, policy):
    context, mask = payments(200)
    engine = Engine(policy, tmp_path / "log")
    first = ask(engine, ids(100), context.take(slice(0, 100)), mask[:100])
    engine.close()
    other = saved_policy(tmp_path / "other", "igw-4", 4, gamma=7.0)
    engine = Engine(other, tmp_path / "log")
    both = ask(engine, ids(200), context, mask)
    engine.close()
    assert chosen(both[:100]) == chosen(first)
    assert [answer.policy_id for answer in both] == ["igw-3"] * 100 + ["igw-4"] * 100
    assert [answer.event_time for answer in both[:100]] == [answer.event_time for answer in first]
    assert both[0].model_sha == policy.model_sha
    assert both[199].model_sha == other.model_sha
    fresh = other.decide(context, mask, counters_of(key_array([transaction_key("shop", name) for name in ids(200)])))
    assert chosen(both[100:]) == list(zip(fresh.action[100:].tolist(), fresh.propensity[100:].tolist(), strict=True))


@pytest.mark.parametrize("change", ["context", "mask", "within a batch", "after a restart"])
def test_a_transaction_with_another_content_is_refused_and_nothing_of_its_batch_is_decided(tmp_path, policy, change):
    engine = Engine(policy, tmp_path / "log")
    context, mask = payments(3)
    other, other_mask = payments(3, seed=1)
    if change == "within a batch":
        names, asked = ["a", "new", "a"], (context, mask)
    else:
        ask(engine, ["a"], context.take(slice(0, 1)), mask[:1])
        names = ["new", "a", "new2"]
        rows = torch.tensor([1, 0, 2])
        asked = (other, mask[rows]) if change != "mask" else (context.take(rows), other_mask)
    if change == "after a restart":
        engine.close()
        engine = Engine(policy, tmp_path / "log")
    before = engine.counters["decisions"]
    with pytest.raises(Conflict, match="transaction_id = a: was decided before"):
        engine.decide(["shop"] * 3, names, *asked)
    assert engine.counters["decisions"] == before
    assert not any(answer.repeated for answer in ask(engine, ["new"], context.take(slice(1, 2)), mask[1:2]))
    # Another tenant's transaction of that name is another payment.
    assert not engine.decide(["other"], ["a"], other.take(slice(0, 1)), mask[:1]).result(10)[0].repeated
    engine.close()


def test_contents_that_differ_in_one_value_have_other_fingerprints():
    context, mask = payments(1)
    many = torch.zeros(1 + len(CATEGORIES + NUMERICS) + 31, dtype=torch.int64)
    columns = {name: column[many].clone() for name, column in context.columns().items()}
    masked = mask[many].clone()
    for row, name in enumerate(CATEGORIES + NUMERICS, 1):
        columns[name][row] = 1 - columns[name][row]
    for action in range(1, 32):
        masked[len(CATEGORIES + NUMERICS) + action, action] ^= True
    assert len(set(fingerprints(PaymentContext(**columns), masked).tolist())) == len(many)
    flags = torch.tensor([[float(i >> bit & 1) for bit in range(7)] for i in range(128)], dtype=torch.float64)
    rows = PaymentContext(
        **{name: torch.zeros(128, dtype=torch.int64) for name in CATEGORIES},
        **dict(zip(NUMERICS, flags.unbind(1), strict=True)),
    )
    assert len(set(fingerprints(rows, mask[torch.zeros(128, dtype=torch.int64)]).tolist())) == 128


def test_what_the_log_could_not_hold_is_not_decided_and_may_be_asked_for_again(tmp_path, engine, monkeypatch):
    context, mask = payments(2)
    first, second = slice(0, 1), slice(1, 2)
    write = os.write

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    waiting = [engine.decide(["shop"], ["a"], context.take(first), mask[:1]) for _ in range(2)]
    for future in waiting:
        with pytest.raises(OSError, match="No space left"):
            future.result(10)
    assert "No space left" in engine.trouble[0]
    assert engine.counters["decisions"] == 0
    monkeypatch.setattr(os, "write", write)
    assert not ask(engine, ["a"], context.take(first), mask[:1])[0].repeated
    assert ask(engine, ["a"], context.take(first), mask[:1])[0].repeated
    ask(engine, ["b"], context.take(second), mask[1:])
    assert engine.trouble == []
    engine.close()
    assert len(logged(tmp_path / "log")) == 2


def test_levels_that_the_policy_does_not_know_are_decided_and_counted(engine):
    context, mask = payments(4)
    context.issuer[:2] = torch.tensor([-1, 5000])
    context.merchant[3] = 6
    answers = ask(engine, ids(4), context, mask)
    assert all(0 < answer.propensity <= 1 for answer in answers)
    text = engine.counters.text()
    assert f'{PREFIX}unknown_categories_total{{category="issuer"}} 2' in text
    assert f'{PREFIX}unknown_categories_total{{category="merchant"}} 1' in text


def test_rewards_are_told_their_standing_and_the_join_agrees(tmp_path, policy):
    engine = Engine(policy, tmp_path / "log")
    context, mask = payments(3)
    answers = ask(engine, ids(3), context, mask)
    hour, day = 3600 * 10**6, 86_400 * 10**6
    at = [answer.event_time for answer in answers]
    key = [answer.decision_id for answer in answers]
    rewards = [
        Reward(key[0], 1.0, at[0] + hour),
        Reward(key[0], 0.0, at[0] + 2 * hour),
        Reward(key[1], 1.0, at[1] + 31 * day),
        Reward(key[1], 1.0, at[1] - 1),
        Reward(bytes(16), 1.0, at[1]),
    ]
    assert engine.reward(rewards).result(10) == ["recorded", "duplicate", "late", "early", "unknown"]
    with pytest.raises(InputError, match=r"row 1: reward = 1\.5: must be in \[0, 1\]"):
        engine.reward([rewards[0], Reward(key[2], 1.5, at[2])])
    engine.close()
    engine = Engine(policy, tmp_path / "log")
    assert engine.reward([Reward(key[0], 1.0, at[0] + hour)]).result(10) == ["duplicate"]
    engine.close()
    report = join_log(tmp_path / "log", tmp_path / "joined")
    assert (report.decisions, report.rewards, report.matched) == (3, 6, 1)
    assert report.refused_rewards == {
        "duplicate": 2,
        "the reward is before its decision": 1,
        "the reward is later than the horizon": 1,
        "there is no such decision": 1,
    }


def test_a_log_of_other_actions_or_an_unsaved_policy_is_refused_and_a_finer_policy_goes_on(tmp_path, policy):
    Engine(policy, tmp_path / "log").close()
    for flags, refused in ((6, False), (5, True), (7, True)):
        sizes = Sizes(12, 6, 4, flags)
        other = saved_policy(tmp_path / f"policy_{flags}", sizes=sizes)
        if refused:
            with pytest.raises(InputError, match="a log of decisions over 64 actions"):
                Engine(other, tmp_path / "log")
        else:
            Engine(other, tmp_path / "log").close()
    with pytest.raises(InputError, match="save it first"):
        Engine(Policy("p", 0, oracle(), SIZES, Exploration(rule="greedy")), tmp_path / "new")


def test_probabilities_are_logged_if_asked_for(tmp_path, policy):
    engine = Engine(policy, tmp_path / "log", keep_probabilities=True)
    context, mask = payments(5)
    ask(engine, ids(5), context, mask)
    engine.close()
    table = logged(tmp_path / "log")
    assert np.array(table["pi"].to_pylist()) == pytest.approx(policy.probabilities(context, mask).numpy(), abs=1e-7)
    assert join_log_is_clean(tmp_path)


def join_log_is_clean(tmp_path):
    report = join_log(tmp_path / "log", tmp_path / "joined")
    return report.refused_decisions == {} and report.pending == report.decisions


# the HTTP face

PAYMENT = {
    "tenant": "shop",
    "transaction_id": "t1",
    "issuer": 3,
    "merchant": 2,
    "country": 1,
    "scheme": "visa",
    "funding": "debit",
    "interaction": 0,
    "amount": 42.0,
    "cross_border": False,
    "hour": 13.5,
    "expiry_days": 300,
    "token_available": True,
    "stored": 0,
    "attempt": 0,
    "available": [0, 1, 2, 3],
}


def call(engine, method, path, body=b""):
    """One request to the app, without a socket: status and content."""
    pytest.importorskip("fastapi")
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = []

    async def receive():
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    asyncio.run(create_app(engine)(scope, receive, send))
    text = b"".join(message.get("body", b"") for message in sent[1:]).decode()
    return sent[0]["status"], text


def test_decisions_and_rewards_over_http_are_the_engines(tmp_path, policy, engine):
    rows = [PAYMENT, PAYMENT | {"transaction_id": "t2", "scheme": "unheard of", "amount": None, "log_amount": 2.0}]
    status, text = call(engine, "POST", "/v1/decide", rows)
    first, second = json.loads(text)
    assert status == 200
    assert first["transaction_id"] == "t1"
    assert first["action"] in PAYMENT["available"]
    assert first["interventions"] == [n for f, n in enumerate(("threeds", "token")) if first["action"] >> f & 1]
    assert bytes.fromhex(first["decision_id"]) == transaction_key("shop", "t1")
    assert first["model_sha"] == policy.model_sha.hex()
    assert engine.counters["unknown_categories"] == 1
    again = json.loads(call(engine, "POST", "/v1/decide", rows[:1])[1])
    assert again == [first | {"repeated": True}]
    now = datetime.now(UTC).isoformat()
    answers = [
        {"tenant": "shop", "transaction_id": "t1", "reward": 1, "event_time": now, "source": "bank"},
        {"decision_id": second["decision_id"], "reward": 0},
    ]
    status, text = call(engine, "POST", "/v1/reward", answers)
    assert (status, [row["status"] for row in json.loads(text)]) == (200, ["recorded", "recorded"])
    engine.close()
    table = logged(tmp_path / "log").to_pylist()
    row = next(row for row in table if row["decision_id"] == bytes.fromhex(first["decision_id"]))
    assert row["log_amount"] == np.log(42.0)
    assert (row["scheme"], row["funding"], row["mask"]) == (0, 1, 0b1111)
    assert (row["action"], row["propensity"]) == (first["action"], first["propensity"])
    report = join_log(tmp_path / "log", tmp_path / "joined")
    assert report.matched == 2


def without(name):
    return {key: value for key, value in PAYMENT.items() if key != name}


REFUSED = [
    ([PAYMENT, PAYMENT | {"amount": -1}], "row 1: amount: input should be greater than 0, is -1"),
    ([without("hour")], "row 0: hour: field required"),
    ([PAYMENT | {"amuont": 3}], "row 0: amuont: extra inputs are not permitted"),
    ([PAYMENT | {"log_amount": 2.0}], "row 0: give either amount or log_amount"),
    ([without("amount")], "row 0: give either amount or log_amount"),
    ([PAYMENT | {"issuer": "bank"}], "row 0: issuer: input should be a valid integer"),
    ([PAYMENT | {"issuer": 2**80}], "row 0: issuer"),
    ([PAYMENT | {"hour": 25}], "row 0: hour: input should be less than or equal to 24, is 25"),
    ([PAYMENT | {"expiry_days": float("nan")}], "row 0: expiry_days: input should be a finite number"),
    ([PAYMENT | {"available": []}], "row 0: available: list should have at least 1 item"),
    ([PAYMENT, PAYMENT | {"available": [0, 32]}], "row 1: available: 32 is not one of the actions 0 to 31"),
    ([PAYMENT | {"available": [-1]}], "row 0: available: -1 is not one of the actions 0 to 31"),
    ([PAYMENT | {"tenant": ""}], "row 0: tenant: string should have at least 1 character"),
    ([], "body: list should have at least 1 item"),
    (PAYMENT, "body: input should be a valid list"),
    (b"[{", "body: no JSON"),
]


@pytest.mark.parametrize(("body", "message"), REFUSED)
def test_bad_payments_are_answered_by_one_line_with_row_and_field(engine, body, message):
    status, text = call(engine, "POST", "/v1/decide", body)
    assert status == 422
    error = json.loads(text)["error"]
    assert error.startswith(message)
    assert "\n" not in error
    assert engine.counters["refused_requests"] == 1
    assert engine.counters["decisions"] == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"reward": 1}, "row 0: give either decision_id, or tenant and transaction_id"),
        ({"tenant": "shop", "reward": 1}, "row 0: give either"),
        ({"decision_id": "00" * 16, "tenant": "s", "transaction_id": "t", "reward": 1}, "row 0: give either"),
        ({"decision_id": "xyz", "reward": 1}, "row 0: decision_id: string should match pattern"),
        ({"decision_id": "00" * 16, "reward": 1.5}, "row 0: reward: input should be less than or equal to 1, is 1.5"),
        (
            {"decision_id": "00" * 16, "reward": 1, "event_time": "2026-01-01T00:00:00"},
            "row 0: event_time: input should",
        ),
        ({"decision_id": "00" * 16, "reward": 1, "attempt": -1}, "row 0: attempt"),
    ],
)
def test_bad_rewards_are_answered_by_one_line_with_row_and_field(engine, row, message):
    status, text = call(engine, "POST", "/v1/reward", [row])
    assert status == 422
    assert json.loads(text)["error"].startswith(message)


def test_conflicts_and_a_full_disk_have_their_own_status(engine, monkeypatch):
    call(engine, "POST", "/v1/decide", [PAYMENT])
    status, text = call(engine, "POST", "/v1/decide", [PAYMENT | {"amount": 43.0}])
    assert (status, json.loads(text)["error"].split(":")[0]) == (409, "row 0")
    assert json.loads(call(engine, "GET", "/healthz")[1])["status"] == "ok"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        status, text = call(engine, "POST", "/v1/decide", [PAYMENT | {"transaction_id": "t2"}])
    assert status == 503
    assert "No space left on device" in json.loads(text)["error"]
    status, text = call(engine, "GET", "/healthz")
    assert (status, json.loads(text)["status"]) == (503, "degraded")
    assert engine.counters["failed_requests"] == 1


def test_metrics_are_prometheus_text_and_count_what_happened(engine):
    for _ in range(3):
        call(engine, "POST", "/v1/decide", [PAYMENT])
    status, text = call(engine, "GET", "/metrics")
    values = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            values[name] = float(value)
    assert status == 200
    assert values[f"{PREFIX}decisions_total"] == 1
    assert values[f"{PREFIX}duplicate_decisions_total"] == 2
    assert values[f"{PREFIX}indexed_decisions"] == 1
    buckets = [value for name, value in values.items() if "bucket" in name]
    assert buckets == sorted(buckets)
    assert buckets[-1] == values[f'{PREFIX}request_seconds_count{{path="/v1/decide"}}'] == 3
    assert {name for name in COUNTERS if f"# TYPE {PREFIX}{name}_total counter" in text} == set(COUNTERS)


def test_serve_warns_of_an_address_that_lets_others_in_and_refuses_one_it_cannot_have(tmp_path, policy, monkeypatch):
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip("fastapi")
    said = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: None)
    monkeypatch.setattr(service.gc, "freeze", lambda: None)
    monkeypatch.setattr(service.torch, "set_num_threads", lambda count: None)
    with pytest.raises(InputError, match="no such file"):
        service.serve(tmp_path / "none", tmp_path / "log", port=0)
    service.serve(tmp_path / "policy", tmp_path / "log1", port=0, say=said.append)
    assert [line.split(" on http://127.0.0.1:")[0] for line in said] == ["serving igw-3"]
    said.clear()
    service.serve(tmp_path / "policy", tmp_path / "log2", host="0.0.0.0", port=0, say=said.append)
    assert said[0].startswith("warning: 0.0.0.0 is no loopback address")
    with service._socket("127.0.0.1", 0) as taken, pytest.raises(InputError, match="in use"):
        service.serve(tmp_path / "policy", tmp_path / "log3", port=taken.getsockname()[1])


def test_a_kill_under_load_loses_doubles_and_changes_no_decision(tmp_path):
    pytest.importorskip("uvicorn")
    pytest.importorskip("fastapi")
    from benchmarks.payments_service import deployed, kill_under_load

    policy = deployed(tmp_path / "policy", rows=1000)
    found = kill_under_load(tmp_path / "policy", tmp_path / "log", policy, 100, rate=400)
    assert "all 100 decisions are in the log once" in found
    assert " 0 propensities differ" in found
