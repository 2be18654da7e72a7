"""Small worlds, arms and logs: what the tests of the generation loop, its study and the evaluation start from."""

from apps.payments.exploration import Exploration
from apps.payments.scenario import Arm, Scenario
from simulators.payments import Sizes

SIZES = Sizes(issuers=12, merchants=6, countries=4)


def scenario(**more):
    """A world of few issuers, for four generations of few payments."""
    small = {"name": "small", "sizes": SIZES, "generations": 4, "payments": 300, "evaluation": 150}
    return Scenario(**small | more)


def arm(rule="igw", window=1, name=None, **more):
    """An arm; what is not one of its own settings is its rule's."""
    own = {key: more.pop(key) for key in ("oracle", "imbalance", "weights", "cap", "tune") if key in more}
    return Arm(name=name or rule, exploration=Exploration(rule=rule, **more), window=window, **own)
