"""Closures of two-dimensional turbulence: of the literature, tuned, and learned by agents on the grid."""
