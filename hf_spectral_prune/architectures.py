"""Where the families' tables were before `models/families/`: programs written for that name go on."""

from .models.families import FAMILIES, Family, UnitGroup, UnitKind, family_of, unit_groups

__all__ = ["FAMILIES", "Family", "UnitGroup", "UnitKind", "family_of", "unit_groups"]
