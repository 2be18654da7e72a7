"""A study from a few options: masks on images of one kind, at one or several budgets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from apps.mri.ads import Sampling
from apps.mri.images import Images
from apps.mri.problem import MixtureSettings, PriorSettings, StoredPrior
from apps.mri.study import Comparison, MRIStudy, Subjects
from core.errors import InputError


def compare_masks(
    images: Images,
    budgets: Sequence[int],
    methods: Sequence[str],
    *,
    prior: Path | None = None,
    subjects: int = 16,
    sampling: Sampling | None = None,
) -> MRIStudy:
    """The study of ``methods`` at each of ``budgets``: k-space lines of complex images, or pixels of real ones.

    Args:
        images: training and test images.
        budgets: actions, the initial one included.
        methods: names as in the config.
        prior: folder of the prior; a mixture is fitted to the training images if None.
        subjects: test images.
        sampling: of the posterior.

    Raises:
        InputError: an unknown method, or an impossible budget.
    """
    real = images.kind in ("digits", "mnist")
    settings: PriorSettings = MixtureSettings() if prior is None else StoredPrior(kind="stored", path=prior)
    found = (sampling or Sampling()).model_copy(update={"hard_consistency": not real})
    try:
        scenarios = [
            Comparison(
                name=f"{images.kind}_B{budget}",
                images=images,
                operator="pixels" if real else "kspace_lines",
                budget=budget,
                initial=0 if real else 1,
                prior=settings,
                sampling=found,
                subjects=Subjects(count=subjects),
                methods=tuple(methods),  # type: ignore[arg-type]
                search=MixtureSettings(),
            )
            for budget in budgets
        ]
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise InputError(f"{field}: {problem.get('input')!r}: {problem['msg'].lower()}") from error
    return MRIStudy(study="mri_compare", scenarios=tuple(scenarios), claims=())
