"""Regression oracles: models of the approval probability of every action, learned from answered payments."""

from apps.payments.oracles.factored import FactoredOracle, FactoredSettings
from apps.payments.oracles.fitting import OracleSettings, fit_oracle, load_oracle
from apps.payments.oracles.gbdt import GBDTOracle, GBDTSettings
from apps.payments.oracles.homeostatic import HomeostaticSettings
from apps.payments.oracles.hopfield import HopfieldSettings
from apps.payments.oracles.imbalance import ImbalanceSettings, RecalibratedOracle
from apps.payments.oracles.mlp import MLPSettings, NeuralOracle
from apps.payments.oracles.oracle import ConstantLabels, Oracle, OracleConfig, OracleDiverged, OracleNotFitted
from apps.payments.oracles.rows import Rows, unknown_counts
from apps.payments.oracles.vw import VWSettings

__all__ = [
    "ConstantLabels",
    "FactoredOracle",
    "FactoredSettings",
    "GBDTOracle",
    "GBDTSettings",
    "HomeostaticSettings",
    "HopfieldSettings",
    "ImbalanceSettings",
    "MLPSettings",
    "NeuralOracle",
    "Oracle",
    "OracleConfig",
    "OracleDiverged",
    "OracleNotFitted",
    "OracleSettings",
    "RecalibratedOracle",
    "Rows",
    "VWSettings",
    "fit_oracle",
    "load_oracle",
    "unknown_counts",
]
