"""Control of multi-species fisheries: harvest rules, exact solutions and learning, on models and on fitted stocks.

from apps.fishery import FisheryStudy, evaluate, model, tune, tuned_rule

world = model(3)
rule = tuned_rule(tune(world, "constant_mortality"))
print(evaluate(world, rule)["return"].mean())

FisheryStudy.load("quick").run("runs/quick")
"""

from apps.fishery.approximate_model import LogisticFit, fit_logistic, poor_model_rule
from apps.fishery.dynamic_programming import Solution, solve
from apps.fishery.evaluation import evaluate, policy_slices
from apps.fishery.gaussian_process import GaussianProcessRule, smooth
from apps.fishery.learning import PPOSettings, load_policy, train
from apps.fishery.policies import ConstantEscapement, ConstantMortality, PrecautionaryRamp
from apps.fishery.study import FisheryStudy
from apps.fishery.surplus_production import SurplusProductionFit, fit_surplus_production
from apps.fishery.tuning import tune, tuned_rule
from simulators.fishery import Fishery, model, stock_world
from simulators.fishery.stocks import Stock, read_stock, shipped_stocks

__all__ = [
    "ConstantEscapement",
    "ConstantMortality",
    "Fishery",
    "FisheryStudy",
    "GaussianProcessRule",
    "LogisticFit",
    "PPOSettings",
    "PrecautionaryRamp",
    "Solution",
    "Stock",
    "SurplusProductionFit",
    "evaluate",
    "fit_logistic",
    "fit_surplus_production",
    "load_policy",
    "model",
    "policy_slices",
    "poor_model_rule",
    "read_stock",
    "shipped_stocks",
    "smooth",
    "solve",
    "stock_world",
    "train",
    "tune",
    "tuned_rule",
]
