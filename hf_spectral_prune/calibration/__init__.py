"""Calibration: streaming moments of the units' signals, and the hooks that fill them."""

from ..data.texts import CalibrationData, build_calibration
from .collect import collect_moments
from .moments import GroupMoments, Moments, unit_channels

__all__ = ["CalibrationData", "GroupMoments", "Moments", "build_calibration", "collect_moments", "unit_channels"]
