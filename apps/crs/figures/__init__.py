"""The pictures of the study."""

from apps.crs.evidence import Evidence
from apps.crs.figures.belief import calibration, has_beliefs
from apps.crs.figures.dialogues import candidates_left, kinds_of_turn, popularity
from apps.crs.figures.learning import has_looks, learning_curves
from apps.crs.figures.success import compared, relative_success, success_by_turn
from core.study import Figure


def of_study(evidence: Evidence) -> list[Figure]:
    """Every picture that the results allow; those of single problems are about the first."""
    first = evidence.problems[0]
    over = "95 % bootstrap intervals over trainings and dialogues"
    found = [
        Figure("turns", f"Average turns and success of each policy, {first} ({over}).", lambda: compared(evidence)),
        Figure(
            "success_by_turn",
            f"Share of the dialogues that have succeeded by each turn, {first}; mean over trainings.",
            lambda: success_by_turn(evidence),
        ),
        Figure(
            "relative_success",
            f"The same less that of maximum entropy (or of the first method), {first}; bands: {over}.",
            lambda: relative_success(evidence),
        ),
        Figure(
            "kinds_of_turn",
            f"What each policy does at each turn, {first}: the share of the dialogues still going on in which it "
            "recommends rather than asks; grey where fewer than 1 % go on.",
            lambda: kinds_of_turn(evidence),
        ),
        Figure(
            "candidates",
            f"Candidates left after each turn, median over the dialogues still going on, {first}.",
            lambda: candidates_left(evidence),
        ),
        Figure(
            "popularity",
            f"Average turns by how often the target was taken in the training split (fifths of the targets), {first}; "
            "95 % bootstrap intervals over dialogues.",
            lambda: popularity(evidence),
        ),
    ]
    if has_looks(evidence):
        caption = "Held-out dialogues during training; thin: a training, thick: their mean, rings: what was kept."
        found.append(Figure("learning", caption, lambda: learning_curves(evidence)))
    if has_beliefs(evidence):
        caption = "Belief that a recommended list holds the target, and how often it does; 95 % Wilson intervals."
        found.append(Figure("calibration", caption, lambda: calibration(evidence)))
    return found
