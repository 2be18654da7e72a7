"""The worlds: equations, parameters with units and readers of real data, usable without any learning algorithm.

Importing this package registers the single-copy environments with gymnasium: ``gymnasium.make("Fishery-v0")``.
"""

import gymnasium

gymnasium.register(id="CRS-v0", entry_point="simulators.crs.environment:make")
gymnasium.register(id="Fishery-v0", entry_point="simulators.fishery.environment:make")
gymnasium.register(id="LipReading-v0", entry_point="simulators.lips.environment:make")
gymnasium.register(id="MRIAcquisition-v0", entry_point="simulators.mri.environment:make")
gymnasium.register(id="Payments-v0", entry_point="simulators.payments.environment:make")
gymnasium.register(id="Sepsis44-v0", entry_point="simulators.sepsis.environment:make")
gymnasium.register(id="ICUSepsis44-v0", entry_point="simulators.sepsis.environment:make_icusepsis")
gymnasium.register(id="GumbelSepsis-v0", entry_point="simulators.sepsis.environment:make_gumbel")
