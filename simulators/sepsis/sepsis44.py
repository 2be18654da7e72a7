"""A patient with septic shock as a batched state machine: what the body does is known, what is seen is 44 features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from core.errors import InputError
from core.simulation import Step, Variable
from simulators.sepsis.features import (
    ACTIONS,
    FLUID_ML,
    STATE,
    VASOPRESSOR,
    fluid_level,
    vasopressor_level,
)
from simulators.sepsis.scores import sirs, sofa

LIMITS: dict[str, tuple[float, float]] = {
    **{"gender": (0, 1), "mechvent": (0, 1), "age": (18, 91), "Weight_kg": (40, 160)},
    **{"SOFA": (0, 24), "SIRS": (0, 4), "Shock_Index": (0, 15), "GCS": (3, 15), "FiO2_1": (0.21, 1)},
    **{"output_4hourly": (0, 2000), "output_total": (0, 60_000), "input_total": (0, 80_000)},
    **{"cumulated_balance": (-60_000, 80_000), "HR": (10, 250), "RR": (2, 80), "Temp_C": (30, 45)},
    **{"SysBP": (20, 300), "MeanBP": (5, 200), "DiaBP": (2, 180), "SpO2": (60, 100)},
    **{"Potassium": (1, 12), "Sodium": (90, 200), "Chloride": (60, 160), "Glucose": (20, 1000)},
    **{"Magnesium": (0.2, 8), "Calcium": (2, 20), "Hb": (2, 25), "WBC_count": (0.1, 80)},
    **{"Platelets_count": (5, 900), "PTT": (10, 250), "PT": (5, 150), "INR": (0.8, 12)},
    **{"Arterial_pH": (6.5, 7.8), "paO2": (10, 600), "paCO2": (5, 200), "PaO2_FiO2": (50, 600)},
    **{"Arterial_BE": (-60, 40), "HCO3": (1, 60), "Arterial_lactate": (0.3, 20), "BUN": (2, 200)},
    **{"Creatinine": (0.3, 12), "SGOT": (5, 5000), "SGPT": (5, 5000), "Total_bili": (0.1, 30)},
}
"""Range of each feature, in its units: what a monitor or a laboratory would still report."""

REACH = 1.3
"""Vasopressor effect at an unlimited dose, in units of vasoplegia, for a patient whose response is 1."""
HALF_DOSE = 0.15
"""Dose of half the effect, ug/kg/min."""


@dataclass(frozen=True)
class Sepsis44State:
    """Patients at the start of a step of 4 h; every field ``(B,)`` unless said otherwise.

    Attributes:
        infection: load of the infection, 0 for none, about 1 at admission.
        deficit: volume that the circulation lacks, L; negative when overfilled.
        vasoplegia: loss of the vessels' tone, 0 to 2.5.
        lung_water: 0 for dry lungs.
        kidney: damage of the kidney, 0 for none.
        liver: damage of liver and coagulation, 0 for none.
        lactate: mmol/L.
        age: years.
        male: 1 or 0.
        weight: kg.
        response: how strongly the vessels answer to the vasopressor; never seen, mean 1.
        immune: share of the infection that is cleared in a step.
        ventilated: 1 or 0.
        input_total: fluid received so far, mL.
        output_total: urine so far, mL.
        vasopressor: int64, level 0..4 of the step before.
        step: int64, steps so far.
        idiosyncrasy: ``(B, 44)`` the patient's own lasting deviation of each feature, standard normal.
        observation: ``(B, 44)`` what is seen, in the order of ``features.STATE`` and in units.
    """

    infection: Tensor
    deficit: Tensor
    vasoplegia: Tensor
    lung_water: Tensor
    kidney: Tensor
    liver: Tensor
    lactate: Tensor
    age: Tensor
    male: Tensor
    weight: Tensor
    response: Tensor
    immune: Tensor
    ventilated: Tensor
    input_total: Tensor
    output_total: Tensor
    vasopressor: Tensor
    step: Tensor
    idiosyncrasy: Tensor
    observation: Tensor


SCALARS = tuple(f.name for f in fields(Sepsis44State))[:-2]
"""The fields of a state with one number a patient, in the order of ``Sepsis44.latent``."""
_WHOLE = ("vasopressor", "step")


@dataclass(frozen=True)
class Sepsis44Noise:
    """All that is random in one step.

    Attributes:
        body: ``(B, 7)`` standard normals of deficit, lung water, vasoplegia, infection, lactate, kidney and liver.
        observation: ``(B, 44)`` standard normals of the features seen after the step.
        death: ``(B,)`` uniform; the patient dies if it is below the hazard, so 1 switches death off.
    """

    body: Tensor
    observation: Tensor
    death: Tensor


class _Circulation(NamedTuple):
    """Mean arterial pressure (mmHg), shock (0 for none) and urine (mL in 4 h), each ``(B,)``."""

    pressure: Tensor
    shock: Tensor
    urine: Tensor


@dataclass(frozen=True)
class Sepsis44:
    """Three days of septic shock in steps of 4 h, treated with fluid and vasopressor at five levels each.

    A mechanistic model of its own making: infection drives vasoplegia and loss of volume; both lower the pressure; low
    pressure raises lactate and harms kidney and liver; too much fluid fills the lungs and too much vasopressor starves
    the tissue; all of it raises the hazard of death. Who is alive after ``horizon`` steps survives: the world itself
    ends there, because that decides the reward. Everything is known, so the survival under any policy is
    (``survival``), and so are the doses a patient needs (``truth_dose``).

    Reward: -1 at death, +1 at the end alive, 0 elsewhere.

    Attributes:
        horizon: steps of 4 h until survival counts.
        dtype: of all numbers.

    Raises:
        InputError: a horizon below 1, or a dtype that is not float32 or float64.
    """

    horizon: int = 18
    dtype: torch.dtype = torch.float32
    agents: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise InputError(f"horizon = {self.horizon}: must be at least 1 step")
        if self.dtype not in (torch.float32, torch.float64):
            raise InputError(f"dtype = {self.dtype}: must be torch.float32 or torch.float64")

    @cached_property
    def observation_space(self) -> Box:
        """The 44 features in units, within ``LIMITS``."""
        number: Any = np.float64 if self.dtype == torch.float64 else np.float32
        low, high = (np.array([LIMITS[name][i] for name in STATE], number) for i in (0, 1))
        return Box(low, high, dtype=number)

    @cached_property
    def action_space(self) -> Discrete:
        """5 * fluid level + vasopressor level."""
        return Discrete(ACTIONS)

    @cached_property
    def variables(self) -> Mapping[str, Variable]:
        """What a roll-out records."""
        return {
            "observation": Variable(("feature",), "see features.UNITS", "features seen", {"feature": STATE}),
            "action": Variable((), "1", "5 * fluid level + vasopressor level"),
            "infection": Variable((), "1", "infection load"),
            "deficit": Variable((), "L", "volume deficit"),
            "vasoplegia": Variable((), "1", "vasoplegia"),
            "lung_water": Variable((), "1", "lung water"),
            "kidney": Variable((), "1", "kidney damage"),
            "liver": Variable((), "1", "liver and coagulation damage"),
            "lactate": Variable((), "mmol/L", "lactate"),
            "pressure": Variable((), "mmHg", "mean arterial pressure after the step"),
            "hazard": Variable((), "1", "probability of death in the step"),
            "died": Variable((), "1", "died in the step"),
            "reward": Variable((), "1", "+1 alive at the end, -1 at death"),
        }

    def reset(self, batch: int, generator: torch.Generator) -> Sepsis44State:
        """Draw ``batch`` patients at admission, on the device of the generator."""
        device = generator.device

        def normal(mean: float, deviation: float) -> Tensor:
            drawn = torch.randn(batch, generator=generator, dtype=self.dtype, device=device)
            return mean + deviation * drawn

        def gamma(shape: int, scale: float) -> Tensor:
            # A gamma law of whole shape is a sum of exponential ones.
            drawn = torch.empty(shape, batch, dtype=self.dtype, device=device).exponential_(generator=generator)
            return scale * drawn.sum(0)

        def chance(probability: float) -> Tensor:
            drawn = torch.rand(batch, generator=generator, dtype=self.dtype, device=device)
            return (drawn < probability).to(self.dtype)

        def features() -> Tensor:
            return torch.randn(len(STATE), batch, generator=generator, dtype=self.dtype, device=device).T

        none = torch.zeros(batch, dtype=torch.int64, device=device)
        state = Sepsis44State(
            infection=gamma(3, 0.33),
            deficit=normal(0.8, 0.6),
            vasoplegia=normal(0.6, 0.35).clamp(0, 2),
            lung_water=normal(0.3, 0.3).relu(),
            kidney=normal(0.5, 0.5).relu(),
            liver=normal(0.4, 0.4).relu(),
            lactate=1.2 + normal(1.2, 1.0).relu(),
            age=normal(65, 16).clamp(18, 91),
            male=chance(0.56),
            weight=normal(80, 20).clamp(40, 160),
            response=gamma(4, 0.25),
            immune=normal(0.12, 0.05).clamp(0.02, 0.3),
            ventilated=chance(0.3),
            input_total=gamma(2, 1500),
            output_total=gamma(2, 800),
            vasopressor=none,
            step=none,
            idiosyncrasy=features(),
            observation=features(),
        )
        dose = torch.zeros_like(state.deficit)
        circulation = _circulation(state.deficit, state.vasoplegia, state.kidney, state.response, dose)
        return replace(state, observation=_seen(state, circulation, dose, state.observation))

    def noise(self, batch: int, generator: torch.Generator) -> Sepsis44Noise:
        """Draw what is random in one step of ``batch`` patients."""
        # Drawn feature by feature and seen as patient by patient: the features are computed one after the other.
        normals = torch.randn(7 + len(STATE), batch, generator=generator, dtype=self.dtype, device=generator.device)
        death = torch.rand(batch, generator=generator, dtype=self.dtype, device=generator.device)
        return Sepsis44Noise(normals[:7].T, normals[7:].T, death)

    def step(self, state: Sepsis44State, action: Tensor, noise: Sepsis44Noise) -> Step:
        """Treat every patient for 4 h.

        Args:
            state: B patients.
            action: ``(B,)`` whole numbers 0..24, 5 * fluid level + vasopressor level.
            noise: of the step.

        Returns:
            Step with info ``hazard`` and ``pressure`` (mmHg) ``(B,)``, and ``died`` ``(B,)`` bool.

        Raises:
            InputError: an action of another shape, or outside 0..24.
        """
        action = _checked(action, len(state.step))
        fluid = state.deficit.new_tensor(FLUID_ML)[fluid_level(action)] / 1000
        dose = state.deficit.new_tensor(VASOPRESSOR)[vasopressor_level(action)]
        body = noise.body.unbind(1)

        deficit = state.deficit + 0.16 * state.infection - 0.75 * fluid + 0.08 * body[0]
        leak = 0.16 * state.infection * fluid
        lungs = (0.88 * state.lung_water + 0.55 * (-deficit).relu() + leak + 0.05 * body[1]).relu()
        vasoplegia = (0.92 * state.vasoplegia + 0.10 * state.infection + 0.06 * body[2]).clamp(0, 2.5)
        infection = (state.infection * (1 - state.immune) + 0.04 * body[3]).relu()
        circulation = _circulation(deficit, vasoplegia, state.kidney, state.response, dose)
        shock = circulation.shock

        need = ((vasoplegia - 0.3) / (REACH * state.response.sqrt())).clamp(0, 0.82)
        ischaemia = (dose - 1.25 * HALF_DOSE * need / (1 - need) - 0.03).relu()
        lactate = state.lactate + 0.7 * shock - 0.28 * (state.lactate - 1.1) + 2.2 * ischaemia + 0.15 * lungs
        lactate = (lactate + 0.15 * body[4]).clamp(0.5, 18)
        kidney = (0.97 * state.kidney + 0.16 * shock + 0.25 * ischaemia + 0.04 * body[5]).relu()
        liver = (0.97 * state.liver + 0.08 * shock + 0.05 * infection + 0.04 * body[6]).relu()

        after = replace(
            state,
            infection=infection,
            deficit=deficit,
            vasoplegia=vasoplegia,
            lung_water=lungs,
            kidney=kidney,
            liver=liver,
            lactate=lactate,
            ventilated=torch.where(lungs > 1.3, 1.0, state.ventilated),
            input_total=state.input_total + 1000 * fluid,
            output_total=state.output_total + circulation.urine,
            vasopressor=vasopressor_level(action),
            step=state.step + 1,
        )
        after = replace(after, observation=_seen(after, circulation, dose, noise.observation))
        hazard = _hazard(after)
        died = noise.death < hazard
        end = after.step >= self.horizon
        reward = torch.where(died, -1.0, end.to(self.dtype))
        return Step(after, reward, died | end, {"hazard": hazard, "pressure": circulation.pressure, "died": died})

    def observe(self, state: Sepsis44State, noise: Sepsis44Noise | None = None) -> Tensor:
        """``(B, 44)`` what is seen, in units: drawn with the state, so that reading it twice gives the same."""
        return state.observation

    def action_mask(self, state: Sepsis44State) -> None:
        """Every action is allowed."""

    @staticmethod
    def latent(state: Sepsis44State) -> Tensor:
        """``(B, 61)`` what ``reset_to`` needs beside the observation: the fields of ``SCALARS``, the idiosyncrasy."""
        numbers = [getattr(state, name).to(state.deficit.dtype) for name in SCALARS]
        return torch.cat([torch.stack(numbers, 1), state.idiosyncrasy], 1)

    def reset_to(self, latent: Tensor, observation: Tensor) -> Sepsis44State:
        """The states that rows of ``latent`` and of observations came from; a cohort keeps both.

        Args:
            latent: ``(B, 61)`` from ``latent``.
            observation: ``(B, 44)`` in units.

        Raises:
            InputError: rows of another width.
        """
        width = len(SCALARS) + len(STATE)
        if latent.shape[1:] != (width,) or observation.shape != (len(latent), len(STATE)):
            raise InputError(
                f"latent {tuple(latent.shape)}, observation {tuple(observation.shape)}: "
                f"must be (B, {width}) and (B, {len(STATE)})"
            )
        latent, observation = latent.to(self.dtype), observation.to(self.dtype)
        numbers = dict(zip(SCALARS, latent.T[: len(SCALARS)].contiguous().unbind(0), strict=True))
        numbers |= {name: numbers[name].round().long() for name in _WHOLE}
        return Sepsis44State(**numbers, idiosyncrasy=latent[:, len(SCALARS) :], observation=observation)


def _checked(action: Tensor, batch: int) -> Tensor:
    if action.shape != (batch,) or action.is_floating_point():
        raise InputError(f"action: {action.dtype} of shape {tuple(action.shape)}; must be whole numbers ({batch},)")
    outside = (action < 0) | (action >= ACTIONS)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise InputError(f"action[{row}] = {int(action[row])}: must be 0 to {ACTIONS - 1}")
    return action.long()


def _circulation(deficit: Tensor, vasoplegia: Tensor, kidney: Tensor, response: Tensor, dose: Tensor) -> _Circulation:
    effect = REACH * response.sqrt() * dose / (dose + HALF_DOSE)
    tone = (vasoplegia - effect).relu()
    pressure = (92 - 22 * tone - 14 * deficit.relu() + 4 * (-deficit).relu()).clamp(30, 130)
    shock = (68 - pressure).relu() / 12
    urine = 340 * torch.exp(-0.9 * shock - 0.5 * kidney) * (1 - 0.25 * deficit.clamp(-1, 2))
    return _Circulation(pressure, shock, urine.relu())


def _hazard(state: Sepsis44State) -> Tensor:
    organs = 0.33 * state.lactate + 0.5 * state.kidney + 0.45 * state.lung_water + 0.25 * state.liver
    return torch.sigmoid(-6.1 + organs + 0.012 * (state.age - 65))


def _seen(state: Sepsis44State, circulation: _Circulation, dose: Tensor, noise: Tensor) -> Tensor:
    """``(B, 44)`` features in units."""
    lasting = 0.6 * state.idiosyncrasy + 0.8 * noise
    e = dict(zip(STATE, lasting.T.contiguous().unbind(0), strict=True))
    infection, kidney, liver, lungs = state.infection, state.kidney, state.liver, state.lung_water
    dry, shock, excess = state.deficit.relu(), circulation.shock, state.lactate - 1.2
    oxygen = (0.3 + 0.2 * lungs + 0.05 * e["FiO2_1"]).clamp(*LIMITS["FiO2_1"])
    ratio = (420 - 150 * lungs - 20 * infection + 30 * e["PaO2_FiO2"]).clamp(*LIMITS["PaO2_FiO2"])
    mean = circulation.pressure + 4 * e["MeanBP"]
    systolic = (1.42 * mean + 5 * e["SysBP"]).clamp(min=LIMITS["SysBP"][0])
    coma = 1.6 * shock + 0.8 * infection + 1.5 * state.ventilated
    seen = {
        "gender": state.male,
        "mechvent": state.ventilated,
        "age": state.age,
        "Weight_kg": state.weight,
        "output_4hourly": circulation.urine * torch.exp(0.25 * e["output_4hourly"]),
        "output_total": state.output_total,
        "input_total": state.input_total,
        "cumulated_balance": state.input_total - state.output_total,
        "GCS": (15 - coma + e["GCS"]).clamp(*LIMITS["GCS"]).round(),
        "HR": 78 + 9 * dry + 8 * infection + 6 * shock + 8 * e["HR"],
        "SysBP": systolic,
        "MeanBP": mean,
        "DiaBP": 0.72 * mean + 4 * e["DiaBP"],
        "RR": 17 + 3 * infection + 4 * lungs + 2.5 * e["RR"],
        "Temp_C": 37 + 0.6 * infection + 0.4 * e["Temp_C"],
        "FiO2_1": oxygen,
        "Potassium": 4.1 + 0.25 * kidney + 0.35 * e["Potassium"],
        "Sodium": 139 + 0.5 * dry + 3 * e["Sodium"],
        "Chloride": 104 + 4 * e["Chloride"],
        "Glucose": 130 + 18 * infection + 30 * e["Glucose"],
        "Magnesium": 2 + 0.25 * e["Magnesium"],
        "Calcium": 8.3 + 0.6 * e["Calcium"],
        "Hb": 10.5 + 0.4 * dry + 1.4 * e["Hb"],
        "WBC_count": 8 + 5 * infection + 3 * e["WBC_count"],
        "Platelets_count": 240 - 60 * liver - 25 * infection + 45 * e["Platelets_count"],
        "PTT": 35 + 6 * liver + 6 * e["PTT"],
        "PT": 14 + 2 * liver + 1.5 * e["PT"],
        "Arterial_pH": 7.40 - 0.028 * excess - 0.01 * kidney + 0.02 * e["Arterial_pH"],
        "paO2": oxygen * ratio,
        "paCO2": 40 - 2.5 * excess + 4 * lungs + 3 * e["paCO2"],
        "Arterial_BE": -1.2 * excess + 1.5 * e["Arterial_BE"],
        "HCO3": 24 - 1.3 * excess + 1.2 * e["HCO3"],
        "Arterial_lactate": state.lactate * torch.exp(0.1 * e["Arterial_lactate"]),
        "PaO2_FiO2": ratio,
        "SpO2": 98 - 2.5 * lungs + e["SpO2"],
        "BUN": 18 * torch.exp(0.35 * kidney + 0.3 * e["BUN"]),
        "Creatinine": 0.8 + 0.9 * kidney + 0.1 * e["Creatinine"],
        "SGOT": 40 * torch.exp(0.5 * liver + 0.5 * e["SGOT"]),
        "SGPT": 35 * torch.exp(0.45 * liver + 0.5 * e["SGPT"]),
        "Total_bili": 0.6 + 1.1 * liver + 0.2 * e["Total_bili"],
        "INR": 1.1 + 0.22 * liver + 0.1 * e["INR"],
    }
    seen["Shock_Index"] = seen["HR"] / systolic
    seen["SOFA"] = sofa(
        ratio,
        seen["Platelets_count"],
        seen["Total_bili"],
        mean,
        dose,
        seen["GCS"],
        seen["Creatinine"],
        seen["output_4hourly"],
    )
    seen["SIRS"] = sirs(seen["Temp_C"], seen["HR"], seen["RR"], seen["paCO2"], seen["WBC_count"])
    low, high = (lasting.new_tensor([LIMITS[name][i] for name in STATE])[:, None] for i in (0, 1))
    rows = torch.stack([seen[name].to(lasting.dtype) for name in STATE])
    return torch.clamp(rows, low, high).T
