import pytest
import torch

from apps.sepsis.explanations import lime_order, shap_order
from core.errors import InputError, MissingExtra

GENERATOR = torch.Generator().manual_seed(0)
BACKGROUND = torch.randn(60, 44, generator=GENERATOR)
STATES = torch.randn(6, 44, generator=GENERATOR)
ACTIONS = torch.randint(25, (6,), generator=GENERATOR)
# A few features carry each action, the others little: what matters is then beyond doubt.
WEIGHTS = 0.01 * torch.randn(25, 44, generator=GENERATOR)
WEIGHTS[torch.arange(25).repeat_interleave(4), torch.randint(44, (100,), generator=GENERATOR)] += 1


def linear(states):
    return states @ WEIGHTS.T


def probabilities(states):
    return linear(states).softmax(1)


@pytest.fixture
def packages(monkeypatch):
    """Both packages, SHAP's loops interpreted: compiling them takes longer than all tests here."""
    numba = pytest.importorskip("numba")
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    pytest.importorskip("shap")
    pytest.importorskip("lime")


@pytest.mark.usefixtures("packages")
def test_shapley_values_of_a_linear_function_are_its_weights_times_the_distance_from_the_mean():
    exact = WEIGHTS[ACTIONS] * (STATES - BACKGROUND.mean(0))
    by_value = shap_order(linear, BACKGROUND, STATES, ACTIONS)
    assert torch.equal(by_value, exact.argsort(1, descending=True))
    assert torch.equal(
        shap_order(linear, BACKGROUND, STATES, ACTIONS, by="size"), exact.abs().argsort(1, descending=True)
    )


@pytest.mark.filterwarnings("ignore:\\s*Prediction probabil")
@pytest.mark.usefixtures("packages")
def test_lime_puts_the_features_first_that_carry_the_action():
    order = lime_order(linear, BACKGROUND, STATES, ACTIONS, by="size", samples=2000)
    assert torch.equal(order.sort(1).values, torch.arange(44).expand(6, -1))
    for row, action in zip(order, ACTIONS, strict=True):
        strong = set((WEIGHTS[action] > 0.5).nonzero()[:, 0].tolist())
        assert len(strong & set(row[:6].tolist())) >= len(strong) - 1


@pytest.mark.parametrize("order", [shap_order, lime_order])
def test_equal_seeds_give_equal_orders(order, packages):
    told = []
    runs = [
        order(
            probabilities, BACKGROUND, STATES, ACTIONS, seed=1, progress=lambda fraction, message: told.append(fraction)
        )
        for _ in range(2)
    ]
    assert torch.equal(*runs)
    assert told[-1] == 1


@pytest.mark.parametrize(("order", "package"), [(shap_order, "shap"), (lime_order, "lime")])
def test_an_absent_package_is_named_with_its_extra(order, package, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(MissingExtra, match="explanations"):
        order(linear, BACKGROUND, STATES, ACTIONS)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="background"):
        shap_order(linear, BACKGROUND[:, :3], STATES, ACTIONS)
    with pytest.raises(InputError, match=r"must be \(6,\)"):
        lime_order(linear, BACKGROUND, STATES, ACTIONS[:2])
