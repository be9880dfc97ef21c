"""Calibration: streaming moments of the units' signals, and the hooks that fill them."""

from .collect import collect_moments
from .moments import GroupMoments, Moments, unit_channels

__all__ = ["GroupMoments", "Moments", "collect_moments", "unit_channels"]
