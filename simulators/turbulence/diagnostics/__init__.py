"""What is measured of a flow: spectra, distribution, extremes, jets and stability."""

from simulators.turbulence.diagnostics.distribution import (
    VorticityHistogram,
    distribution_summary,
    extreme_quantile,
    jensen_shannon,
    kernel_density,
    kl,
    tail_log_ratio,
)
from simulators.turbulence.diagnostics.extremes import (
    ExtremeValues,
    block_maxima,
    fit_extremes,
    gap_closed,
    return_levels,
    snapshots_needed,
)
from simulators.turbulence.diagnostics.jets import jet_summary, zonal_wind
from simulators.turbulence.diagnostics.long_run import integral_time, long_run_summary, slope
from simulators.turbulence.diagnostics.records import spacing, within
from simulators.turbulence.diagnostics.spectra import (
    angle_average,
    angle_averaged,
    check_reference,
    energy_spectrum,
    enstrophy_spectrum,
    log_spectrum_error,
    reference_spectrum,
    snapshot_spectra,
    spectrum_summary,
    tail_ratio,
    z1,
)

__all__ = [
    "ExtremeValues",
    "VorticityHistogram",
    "angle_average",
    "angle_averaged",
    "block_maxima",
    "check_reference",
    "distribution_summary",
    "energy_spectrum",
    "enstrophy_spectrum",
    "extreme_quantile",
    "fit_extremes",
    "gap_closed",
    "integral_time",
    "jensen_shannon",
    "jet_summary",
    "kernel_density",
    "kl",
    "log_spectrum_error",
    "long_run_summary",
    "reference_spectrum",
    "return_levels",
    "slope",
    "snapshot_spectra",
    "snapshots_needed",
    "spacing",
    "spectrum_summary",
    "tail_log_ratio",
    "tail_ratio",
    "within",
    "z1",
    "zonal_wind",
]
