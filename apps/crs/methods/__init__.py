"""The methods that a study compares: how each is tuned or trained, and the policy that comes out."""

from typing import Annotated

from pydantic import Field

from apps.crs.methods.learned import (
    CrmMethod,
    DQNMethod,
    EarMethod,
    GroupedMethod,
    ScprMethod,
    UnicornMethod,
)
from apps.crs.methods.method import Method, Workbench
from apps.crs.methods.rules import (
    ActiveInferenceMethod,
    GreedyMethod,
    HopfieldMethod,
    MaxEntropyMethod,
    OracleMethod,
    RandomMethod,
    ThresholdMethod,
)

AnyMethod = Annotated[
    RandomMethod
    | GreedyMethod
    | MaxEntropyMethod
    | ThresholdMethod
    | OracleMethod
    | HopfieldMethod
    | ActiveInferenceMethod
    | DQNMethod
    | GroupedMethod
    | ScprMethod
    | UnicornMethod
    | EarMethod
    | CrmMethod,
    Field(discriminator="kind"),
]

__all__ = [
    "ActiveInferenceMethod",
    "AnyMethod",
    "CrmMethod",
    "DQNMethod",
    "EarMethod",
    "GreedyMethod",
    "GroupedMethod",
    "HopfieldMethod",
    "MaxEntropyMethod",
    "Method",
    "OracleMethod",
    "RandomMethod",
    "ScprMethod",
    "ThresholdMethod",
    "UnicornMethod",
    "Workbench",
]
