"""A study from a few options: masks on images of one kind, at one or several budgets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apps.mri.ads import Sampling
from apps.mri.images import Images
from apps.mri.problem import MixtureSettings, PriorSettings, StoredPrior
from apps.mri.study import MRIStudy
from core.diffusion.loading import load_prior
from core.errors import InputError
from core.study.loading import from_options

OF_LINES = ("ads", "random", "uniform", "fastmri", "vds", "lowpass", "greedy_fixed")
"""What is compared where nothing else is asked for: with k-space lines, ..."""
OF_PIXELS = ("ads", "random", "uniform", "data_variance", "greedy_fixed")
"""... and with pixels, which have no centre."""


def compare_masks(
    images: Images,
    budgets: Sequence[int],
    methods: Sequence[str] | None = None,
    *,
    prior: Path | None = None,
    subjects: int = 16,
    sampling: Sampling | None = None,
) -> MRIStudy:
    """The study of ``methods`` at each of ``budgets``: k-space lines of complex images, or pixels of real ones.

    Args:
        images: training and test images.
        budgets: actions, the initial one included.
        methods: names as in the config; ADS and the fixed masks of the measurement if None.
        prior: folder of the prior; a mixture is fitted to the training images if None.
        subjects: test images.
        sampling: of the posterior.

    Raises:
        InputError: an unknown method, an impossible budget, fewer test images, or a prior of images of another shape.
    """
    last = images.test(subjects - 1, 1)
    shape = (int(last.shape[1]), int(last.shape[2]), int(last.shape[3]))
    if prior is not None and (known := tuple(load_prior(prior).shape)) != shape:
        raise InputError(f"--prior {prior}: is of images of shape {known}, the test images have {shape}")
    real = shape[0] == 1
    settings: PriorSettings = MixtureSettings() if prior is None else StoredPrior(kind="stored", path=prior)
    found = (sampling or Sampling()).model_copy(update={"hard_consistency": not real})
    scenarios = [
        {
            "name": f"{images.kind}_B{budget}",
            "images": images,
            "operator": "pixels" if real else "kspace_lines",
            "budget": budget,
            "initial": 0 if real else 1,
            "prior": settings,
            "sampling": found,
            "subjects": {"count": subjects},
            "methods": tuple(methods or (OF_PIXELS if real else OF_LINES)),
            "search": MixtureSettings(),
        }
        for budget in budgets
    ]
    study = from_options(MRIStudy, {"study": "mri_compare", "scenarios": scenarios, "claims": []}, "compare")
    for scenario in study.scenarios:
        scenario.measurement(shape)
    return study
