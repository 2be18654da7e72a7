"""Search with a policy over token sequences, for all prompts at once; the best sequence of a prompt comes first."""

from core.sequence.search.beam import Constraint, beam
from core.sequence.search.budget import Counted
from core.sequence.search.ranking import Score, best, majority_vote, mbr, mean_log_prob, pass_at_k, ranked
from core.sequence.search.sampling import best_of_n, greedy
from core.sequence.search.shaping import shaped
from core.sequence.search.tree import tree_search
from core.sequence.search.value_beam import Value, state_value, value_beam

__all__ = [
    "Constraint",
    "Counted",
    "Score",
    "Value",
    "beam",
    "best",
    "best_of_n",
    "greedy",
    "majority_vote",
    "mbr",
    "mean_log_prob",
    "pass_at_k",
    "ranked",
    "shaped",
    "state_value",
    "tree_search",
    "value_beam",
]
