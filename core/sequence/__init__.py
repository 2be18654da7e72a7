"""Policies over token sequences: objectives, sampling, search and training."""
