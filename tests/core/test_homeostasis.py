import copy
import itertools
import math

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from core import stats
from core.errors import InputError
from core.nn import DriveRate, HomeostaticRate, LearningRate, RandomRate, ScheduledRate, shuffled

OPPOSITE = torch.tensor([-1.0, 1.0])


def linear(weight, rate=0.1):
    """Two classes of one feature x, logits (0, weight x), without gradient noise from other parameters."""
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [weight]]))
    return model, torch.optim.SGD(model.parameters(), lr=rate)


def learn(model, rate, x, y, observed=None):
    """One step of a learner, as the package's docstring has it; returns the rate of the step."""
    logits = model(*x) if isinstance(x, tuple) else model(x)
    rate.optimizer.zero_grad()
    functional.cross_entropy(logits, y).backward()
    rate.observe(x, y, logits if observed is None else observed)
    rate.optimizer.step()
    return rate.rate


def network(seed=0, inputs=5, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 8), nn.ELU(), nn.Linear(8, classes))


def data(count, seed=0, inputs=5, classes=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, inputs, generator=generator)
    y = (x @ torch.randn(inputs, classes, generator=generator)).argmax(1)
    return x, torch.where(torch.rand(count, generator=generator) < 0.3, y.roll(1), y)


def rates_of(make, batches=60, size=4, **drawn):
    """Rates of a pass of a network over noisy data, and the weights after it."""
    model = network()
    rate = make(model, torch.optim.SGD(model.parameters(), lr=0.05))
    x, y = data(batches * size, **drawn)
    found = [learn(model, rate, *batch) for batch in zip(x.split(size), y.split(size), strict=True)]
    return found, torch.cat([w.detach().flatten() for w in model.parameters()])


MAKE = {
    "constant": lambda model, sgd: LearningRate(sgd),
    "scheduled": lambda model, sgd: ScheduledRate(sgd, torch.linspace(0.1, 0.01, 60)),
    "random": lambda model, sgd: RandomRate(sgd, torch.tensor([-1.0, 0.5, 1.0]), torch.Generator().manual_seed(3)),
    "released": lambda model, sgd: HomeostaticRate(model, sgd, torch.tensor([-1.0, 0.5, 1.0]), step=5.0),
    "by loss": lambda model, sgd: HomeostaticRate(
        model, sgd, torch.tensor([-1.0, 0.5, 1.0]), decide="loss", gradient="full", recognise="centred", every=3
    ),
    "drive": lambda model, sgd: DriveRate(sgd, torch.tensor([-1.0, 0.5, 1.0])),
}


@pytest.mark.parametrize(
    "make",
    [
        lambda model, sgd: HomeostaticRate(model, sgd, torch.zeros(3), decide="loss", gradient="full"),
        lambda model, sgd: RandomRate(sgd, torch.zeros(3), torch.Generator().manual_seed(0)),
        lambda model, sgd: DriveRate(sgd, torch.zeros(3)),
    ],
)
def test_without_an_effect_the_rate_is_constant_to_the_bit(make):
    found, weights = rates_of(make)
    constant, same = rates_of(MAKE["constant"])
    assert found == constant == [0.05] * 60
    assert torch.equal(weights, same)


def test_rates_with_an_effect_move():
    for name in ("released", "by loss", "random", "drive"):
        assert len(set(rates_of(MAKE[name])[0])) > 2, name


def test_a_learner_without_mistakes_keeps_its_rate():
    x, y = torch.tensor([[1.0], [-1.0]]).repeat(40, 1), torch.tensor([1, 0]).repeat(40)
    model, sgd = linear(weight=40.0)
    released = HomeostaticRate(model, sgd, OPPOSITE, memory=4)
    assert {learn(model, released, *batch) for batch in zip(x.split(2), y.split(2), strict=True)} == {0.1}
    drive = DriveRate(sgd, OPPOSITE)
    drive.drive = 1.0
    found = [learn(model, drive, *batch) for batch in zip(x.split(2), y.split(2), strict=True)]
    # It decays by the retention of every sample, and the rate returns to eta_0.
    assert found == pytest.approx([0.1 * math.exp(2 * 0.9 ** (2 * k)) for k in range(1, 41)], rel=1e-12)
    assert found[-1] == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("true", [0, 1])
@pytest.mark.parametrize("predicted", [0, 1])
@pytest.mark.parametrize("better", [True, False])
def test_the_predicted_class_is_tried_and_the_true_class_comes(true, predicted, better):
    # The memory holds class 1 of x = 1 only, so a larger step is better exactly where the gradient raises the weight.
    model, sgd = linear(weight=0.5)
    rate = HomeostaticRate(model, sgd, OPPOSITE, memory=3, decide="loss", gradient="full", step=0.5)
    rate.observe(torch.ones(3, 1), torch.ones(3, dtype=torch.int64), torch.zeros(3, 2))
    raises = better == (predicted == 1)
    model.weight.grad = torch.tensor([[0.0], [-1.0 if raises else 1.0]])
    logits = functional.one_hot(torch.tensor([predicted]), 2).float()
    rate.observe(torch.ones(1, 1), torch.tensor([true]), logits)
    assert rate.rate == pytest.approx(0.1 + (0.05 * (2 * true - 1) if better else 0.0))


def test_accuracy_needs_a_strict_improvement():
    model, sgd = linear(weight=-0.04)
    rate = HomeostaticRate(model, sgd, OPPOSITE, memory=2, gradient="full", step=1.0)
    x, y, sure = torch.ones(1, 1), torch.ones(1, dtype=torch.int64), torch.tensor([[0.0, 1.0]])
    rate.observe(x.repeat(2, 1), y.repeat(2), sure.repeat(2, 1))
    for gradient, moves in ((-0.1, False), (-0.3, True), (-0.5, False)):
        # -0.04 + 0.1 * 0.3 < 0 < -0.04 + 0.2 * 0.3: only there the larger rate gets the memory right and the other not.
        rate.rate = 0.1
        model.weight.grad = torch.tensor([[0.0], [gradient]])
        rate.observe(x, y, sure)
        assert rate.rate == pytest.approx(0.2 if moves else 0.1)


def test_the_first_samples_gradient_is_its_share_of_the_mean_loss():
    # A batch's other samples must not matter: they pull the full gradient the other way.
    for gradient, moves in (("first", True), ("full", False)):
        model, sgd = linear(weight=0.5)
        rate = HomeostaticRate(model, sgd, OPPOSITE, memory=1, decide="loss", gradient=gradient)
        rate.observe(torch.ones(1, 1), torch.ones(1, dtype=torch.int64), torch.zeros(1, 2))
        x, y = torch.ones(5, 1), torch.tensor([1, 0, 0, 0, 0])
        learn(model, rate, x, y)
        assert (rate.rate > 0.1) == moves
    # Of the size of its share: in a batch of two identical samples it is half of the full gradient.
    model, sgd = linear(weight=0.5)
    rate = HomeostaticRate(model, sgd, OPPOSITE)
    x, y = torch.ones(2, 1), torch.ones(2, dtype=torch.int64)
    functional.cross_entropy(model(x), y).backward()
    (share,) = rate._gradients(model.parameters(), x, y)
    assert torch.allclose(2 * share, model.weight.grad)


def test_a_rare_class_is_recognised_where_it_is_likelier_than_usual():
    model, sgd = linear(weight=0.5)
    rate = HomeostaticRate(model, sgd, OPPOSITE, memory=2, recognise="centred")
    rate.observe(
        torch.ones(2, 1), torch.zeros(2, dtype=torch.int64), torch.tensor([0.9, 0.8, 0.1, 0.2]).log().view(2, 2).T
    )
    for declined, recognised in ((0.14, 0), (0.16, 1), (0.6, 1)):
        assert rate._recognised(torch.tensor([1 - declined, declined]).log()) == recognised


def test_the_memory_keeps_the_last_samples_and_their_labels_as_seen():
    model = network(inputs=2)
    rate = HomeostaticRate(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.zeros(3), memory=3)
    x, y = torch.arange(8.0).view(4, 2), torch.tensor([0, 1, 2, 1])
    for batch in zip(x.split(1), y.split(1), strict=True):
        learn(model, rate, *batch)
    assert torch.equal(rate.seen[0], x[1:])
    assert rate.seen[1].tolist() == [1, 2, 1]
    rate.relabel_memory(torch.tensor([0, 2, 1]))
    assert rate.seen[1].tolist() == [2, 1, 2]


def test_several_inputs_are_given_to_the_model_and_remembered():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(4, 3), nn.Linear(5, 2)

        def forward(self, ids, numbers):
            return self.head(torch.cat([self.embedding(ids), numbers], dim=1))

    torch.manual_seed(0)
    model = Embedded()
    rate = HomeostaticRate(model, torch.optim.SGD(model.parameters(), lr=0.1), OPPOSITE, memory=8, decide="loss")
    rates = {learn(model, rate, (torch.randint(4, (4,)), torch.randn(4, 2)), torch.randint(2, (4,))) for _ in range(40)}
    assert len(rates) > 1
    assert [column.shape for column in rate.seen] == [(8,), (8, 2), (8,), (8, 2)]


@pytest.mark.parametrize("name", MAKE)
def test_a_restored_rate_goes_on_as_if_nothing_had_happened(name, tmp_path):
    model = network()
    rate = MAKE[name](model, torch.optim.SGD(model.parameters(), lr=0.05))
    x, y = data(240)
    batches = list(zip(x.split(4), y.split(4), strict=True))
    for batch in batches[:31]:
        learn(model, rate, *batch)
    safetensors.torch.save_file(rate.state_dict(), tmp_path / "rate.safetensors")
    again = copy.deepcopy(model)
    other = MAKE[name](again, torch.optim.SGD(again.parameters(), lr=0.05))
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "rate.safetensors"))
    assert other.rate == rate.rate
    for batch in batches[31:]:
        assert learn(again, other, *batch) == learn(model, rate, *batch)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_bounds_hold():
    _, sgd = linear(weight=0.5, rate=1.0)
    coins = torch.Generator().manual_seed(0)
    x, y = torch.ones(1, 1), torch.ones(1, dtype=torch.int64)
    for effect, bound in ((-OPPOSITE, 1e-3), (OPPOSITE, 3.0)):
        rate = RandomRate(sgd, effect, coins, step=0.4, low=1e-3, high=3.0)
        for _ in range(60):
            rate.observe(x, y, torch.zeros(1, 2))
        assert rate.rate == bound
        rate.rate = 1.0
    drive = DriveRate(sgd, 1e6 * OPPOSITE, gain=1e3)
    drive.observe(x, y, torch.tensor([[1.0, 0.0]]))
    assert drive.rate == pytest.approx(100.0)


def test_random_regulation_moves_by_a_fair_coin_and_the_true_class():
    _, sgd = linear(weight=0.0, rate=1.0)
    rate = RandomRate(sgd, OPPOSITE, torch.Generator().manual_seed(5), step=1e-3)
    for true in (1, 0):
        before = rate.rate
        for _ in range(400):
            rate.observe(torch.ones(1, 1), torch.tensor([true]), torch.zeros(1, 2))
        moves = (rate.rate - before) / (1e-3 * (2 * true - 1))
        assert moves == pytest.approx(200, abs=4 * 10)  # four binomial standard errors


def test_the_drive_of_a_batch_is_that_of_its_samples_in_order():
    effect, generator = torch.tensor([-1.0, 0.5, 1.0]), torch.Generator().manual_seed(1)
    logits, y = torch.randn(12, 3, generator=generator), torch.randint(3, (12,), generator=generator)
    for expect in ("argmax", "mean"):
        _, sgd = linear(weight=0.0)
        drives = []
        for size in (1, 4, 12):
            rate = DriveRate(sgd, effect, expect=expect)
            for part, true in zip(logits.split(size), y.split(size), strict=True):
                rate.observe(torch.zeros(len(true), 1), true, part)
            drives.append(rate.drive)
            sgd.param_groups[0]["lr"] = 0.1
        h = 0.0
        for part, true in zip(logits.double(), y, strict=True):
            foreseen = part.softmax(0) @ effect.double() if expect == "mean" else effect[part.argmax()]
            h = 0.9 * h + 0.1 * float(effect[true] - foreseen)
        assert drives == pytest.approx([h] * 3, rel=1e-12)


def test_a_shuffled_schedule_has_the_same_rates_in_another_order():
    rates = torch.tensor(rates_of(MAKE["by loss"])[0], dtype=torch.float64)
    anew = shuffled(rates, torch.Generator().manual_seed(2))
    assert not torch.equal(anew, rates)
    assert torch.equal(anew.sort().values, rates.sort().values)
    assert rates_of(lambda model, sgd: ScheduledRate(sgd, anew))[0] == anew.tolist()


def test_refusals():
    model, sgd = linear(weight=0.5)
    coins = torch.Generator()
    for message, make in {
        "step = -1": lambda: RandomRate(sgd, OPPOSITE, coins, step=-1),
        "every = 0": lambda: RandomRate(sgd, OPPOSITE, coins, every=0),
        "low = 0.2": lambda: RandomRate(sgd, OPPOSITE, coins, low=0.2),
        "effect of shape": lambda: DriveRate(sgd, torch.tensor([math.nan, 1.0])),
        "memory = 0": lambda: HomeostaticRate(model, sgd, OPPOSITE, memory=0),
        "decide = 'luck'": lambda: HomeostaticRate(model, sgd, OPPOSITE, decide="luck"),
        "retention = 1": lambda: DriveRate(sgd, OPPOSITE, retention=1.0),
        "must be one rate": lambda: LearningRate(
            torch.optim.SGD([{"params": [model.weight]}, {"params": [torch.ones(1)], "lr": 1.0}], lr=0.1)
        ),
        "rates of shape": lambda: ScheduledRate(sgd, torch.tensor([0.1, -0.1])),
    }.items():
        with pytest.raises(InputError, match=message):
            make()
    rate = HomeostaticRate(model, sgd, OPPOSITE, memory=1, gradient="full")
    x, y = torch.ones(1, 1), torch.ones(1, dtype=torch.int64)
    rate.observe(x, y, torch.zeros(1, 2))
    with pytest.raises(InputError, match="call observe after backward"):
        rate.observe(x, y, torch.zeros(1, 2))
    schedule = ScheduledRate(sgd, torch.ones(1))
    schedule.observe(x, y, torch.zeros(1, 2))
    with pytest.raises(InputError, match="one step more"):
        schedule.observe(x, y, torch.zeros(1, 2))


EFFECT = torch.where(torch.arange(10) >= 5, 1.0, -1.0)
DIGITS = {
    "constant": lambda model, sgd, coins: LearningRate(sgd),
    "random": lambda model, sgd, coins: RandomRate(sgd, EFFECT, coins),
    "homeostatic": lambda model, sgd, coins: HomeostaticRate(model, sgd, EFFECT, gradient="full"),
    "no effect": lambda model, sgd, coins: HomeostaticRate(model, sgd, 0 * EFFECT, gradient="full"),
    "drive": lambda model, sgd, coins: DriveRate(sgd, EFFECT),
}


def digits_pass(x, y, make, seed, swap=450, epochs=4):
    """Online accuracy and the rates of passes over the digits, two of whose labels change places every ``swap``."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 40), nn.ELU(), nn.Linear(40, 30), nn.ELU(), nn.Linear(30, 10))
    rate = make(model, torch.optim.SGD(model.parameters(), lr=0.02), generator)
    concept = torch.arange(10)
    swaps = torch.Generator().manual_seed(seed + 1000)
    right, rates = [], []
    order = torch.cat([torch.randperm(len(x), generator=swaps) for _ in range(epochs)])
    for batch in order.split(10):
        if 10 * len(rates) % swap == 0:
            pair = torch.randperm(10, generator=swaps)[:2]
            concept[pair] = concept[pair.flip(0)]
        with torch.no_grad():
            right.append((model(x[batch]).argmax(1) == concept[y[batch]]).double().mean())
        rates.append(learn(model, rate, x[batch], concept[y[batch]]))
    return float(torch.stack(right).mean()), rates


@pytest.mark.slow
def test_digits_whose_labels_swap():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    accuracy = {name: [] for name in (*DIGITS, "shuffled")}
    for seed in range(5):
        rates = {}
        for name, make in DIGITS.items():
            found, rates[name] = digits_pass(x, y, make, seed)
            accuracy[name].append(found)
        anew = shuffled(torch.tensor(rates["homeostatic"]), torch.Generator().manual_seed(seed))
        control = digits_pass(x, y, lambda model, sgd, coins, anew=anew: ScheduledRate(sgd, anew), seed)
        accuracy["shuffled"].append(control[0])
        assert all(math.isfinite(r) and 1e-8 <= r <= 2.0 for r in itertools.chain(*rates.values()))
        assert len(set(rates["homeostatic"])) > 1
    assert accuracy["no effect"] == accuracy["constant"]
    # Whether the timing of the rule's rates is worth anything is measured, not promised.
    timing = stats.paired_difference(accuracy["homeostatic"], accuracy["shuffled"])
    assert timing.low <= timing.mean <= timing.high
    assert timing.n == 5
    print({name: sum(values) / 5 for name, values in accuracy.items()}, timing)
