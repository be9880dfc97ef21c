"""From text to moments: data sources, streaming moments, and the hooks that fill them."""

from .collect import collect_moments
from .data import CalibrationData, build_calibration
from .generate import self_generated
from .images import build_images, load_images
from .moments import GroupMoments, Moments, unit_channels
from .sources import default_texts, load_texts

__all__ = [
    "CalibrationData",
    "GroupMoments",
    "Moments",
    "build_calibration",
    "build_images",
    "collect_moments",
    "default_texts",
    "load_images",
    "load_texts",
    "self_generated",
    "unit_channels",
]
