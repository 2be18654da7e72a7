"""Algorithms and infrastructure shared by every application: simulation views, studies, statistics, learning."""
