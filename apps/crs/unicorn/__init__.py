"""UNICORN (Deng et al. 2021, arXiv 2105.09710): asking and recommending as one policy on a graph of the dialogue."""

from apps.crs.unicorn.history import HistoryFeatures, restore
from apps.crs.unicorn.network import UnicornNetwork, UnicornPolicy
from apps.crs.unicorn.ranking import RandomItems
from apps.crs.unicorn.settings import UnicornSettings
from apps.crs.unicorn.training import UnicornDQN, new_choice, new_unicorn, policy_of, warm_start

__all__ = [
    "HistoryFeatures",
    "RandomItems",
    "UnicornDQN",
    "UnicornNetwork",
    "UnicornPolicy",
    "UnicornSettings",
    "new_choice",
    "new_unicorn",
    "policy_of",
    "restore",
    "warm_start",
]
