"""Adaptive MRI acquisition: priors, Active Diffusion Subsampling, its rivals, and the study that compares them.

Example: the first eight lines that would be acquired of brain slices nobody has seen.

    prior = fit_prior(MixtureSettings(), Atlas(32).sample(3000, seed=0))
    operator = KSpaceLines(prior.shape)
    ads = ADS(prior, operator, Sampling(window=(0.02, 0.6), hard_consistency=True))
    scanner = Scanner(operator, Atlas(32).sample(4, seed=1))
    center = torch.zeros(4, operator.actions, dtype=torch.bool)
    center[:, operator.center] = True
    found = ads.run(scanner, center, budget=8, generators=[torch.Generator().manual_seed(i) for i in range(4)])
    found.order  # (4, 7); found.particles has the posterior samples
"""

from apps.mri import masks
from apps.mri.ads import ADS, Sampling
from apps.mri.board import Acquisition, Stop
from apps.mri.classical import CompressedSensing, TotalVariation, Wavelet, ZeroFilled
from apps.mri.comparison import compare_masks
from apps.mri.entropy import entropy_scores, pairwise_distances
from apps.mri.export import export_masks
from apps.mri.greedy_fixed import greedy_fixed
from apps.mri.images import Images
from apps.mri.problem import MixtureSettings, NetworkSettings, StoredPrior, fit_prior
from apps.mri.scan import Scan, open_scan
from apps.mri.study import Comparison, MRIStudy
from core.diffusion.loading import load_prior

__all__ = [
    "ADS",
    "Acquisition",
    "Comparison",
    "CompressedSensing",
    "Images",
    "MRIStudy",
    "MixtureSettings",
    "NetworkSettings",
    "Sampling",
    "Scan",
    "Stop",
    "StoredPrior",
    "TotalVariation",
    "Wavelet",
    "ZeroFilled",
    "compare_masks",
    "entropy_scores",
    "export_masks",
    "fit_prior",
    "greedy_fixed",
    "load_prior",
    "masks",
    "open_scan",
    "pairwise_distances",
]
