"""The layout of microsoft/mimic_sepsis: ``sepsis_final_data_withTimes.csv`` and its RAW twin.

The scripts extract the Sepsis-3 cohort of Komorowski et al. (2018) from MIMIC-III v1.4 (or, renamed, from MIMIC-IV) in
steps of 4 h. Columns: ``traj, step``, ``m:`` what identifies a stay, 47 ``o:`` observations, ``a:action`` (5 * fluid
level + vasopressor level), ``r:reward`` (+1 or -1 at the last step).
"""

from __future__ import annotations

from simulators.sepsis.readers.records import Layout, final_reward

MIMIC_SEPSIS = Layout(
    "mimic_sepsis", trajectory="traj", step="step", first=None, outcome="reward", outcomes=final_reward
)
