"""The section of a report on the bounds of a plan by neural differentiation."""

from __future__ import annotations

from ..formats import number
from ..saved_folder import SavedFolder
from .page import Section, Table

_COLUMNS = {
    "modes": "modes k",
    "gap": "gap",
    "largest_mass": "largest μ",
    "incoherence": "incoherence bound (eq. 27)",
    "correlation": "bound of |R|",
    "largest_correlation": "largest |R|",
}


def bounds(saved: SavedFolder) -> Section:
    """How far the plan moves the parameters, and how alike the units of each layer can be."""
    found, title = saved.report.bounds, "Bounds of the plan"
    if found is None:
        return Section("bounds", title, [f"The criterion `{saved.plan.criterion}` has no bounds."], missing=True)
    text = [
        f"Setting the removed units to zero moves the dense model's parameters by Δ = {number(found['parameter_distance'])} "
        f"(eq. 30), which is at most the sum of the units' norms, {number(found['parameter_distance_bound'])} (eq. 53).",
        "R is the shrunk correlation matrix of a layer's channels, taken as known exactly. μ is a channel's mass in its k "
        "leading modes, the gap is λ_k - λ_(k+1). The incoherence bound as published holds for the projector on those modes; the "
        "next column bounds the correlations themselves.",
    ]
    rows = [(f"`{key}`", *(number(group[name]) for name in _COLUMNS)) for key, group in found["groups"].items()]
    return Section("bounds", title, text, tables=[Table(["Group", *_COLUMNS.values()], rows)])
