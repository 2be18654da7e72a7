"""Studies as data: a validated config expands to runs, an engine does them, a report keeps what came of it."""

from core.configs import configs, find_config
from core.study.analysis import Analysis, Figure, Row, StudyError, Summary
from core.study.claims import Claim, Undecided, Verdict, adjusted, decide_claims
from core.study.commands import add_study_commands
from core.study.config import Config
from core.study.context import Context
from core.study.results import Results
from core.study.run import Product, Run
from core.study.study import Study

__all__ = [
    "Analysis",
    "Claim",
    "Config",
    "Context",
    "Figure",
    "Product",
    "Results",
    "Row",
    "Run",
    "Study",
    "StudyError",
    "Summary",
    "Undecided",
    "Verdict",
    "add_study_commands",
    "adjusted",
    "configs",
    "decide_claims",
    "find_config",
]
