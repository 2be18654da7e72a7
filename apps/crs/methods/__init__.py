"""The methods that a study compares: how each is tuned or trained, and the policy that comes out."""

from typing import Annotated

from pydantic import Field

from apps.crs.methods.learned import (
    DQNMethod,
)
from apps.crs.methods.method import Method, Workbench
from apps.crs.methods.rules import (
    ActiveInferenceMethod,
    GreedyMethod,
    MaxEntropyMethod,
    OracleMethod,
    RandomMethod,
    ThresholdMethod,
)

AnyMethod = Annotated[
    RandomMethod | GreedyMethod | MaxEntropyMethod | ThresholdMethod | OracleMethod | ActiveInferenceMethod | DQNMethod,
    Field(discriminator="kind"),
]

__all__ = [
    "ActiveInferenceMethod",
    "AnyMethod",
    "DQNMethod",
    "GreedyMethod",
    "MaxEntropyMethod",
    "Method",
    "OracleMethod",
    "RandomMethod",
    "ThresholdMethod",
    "Workbench",
]
