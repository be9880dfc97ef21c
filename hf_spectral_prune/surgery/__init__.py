"""Surgery: cuts weights and config as a plan says, with optional closed-form compensation."""

from .cut import apply_plan, check_compensation, check_plan, fingerprint
from .mask import masked, refitted, zero_masked
from .norms import has_batch_norms, recalibrate_norms
from .plan import PruningPlan
from .settle import add_consumer_biases, as_mistral, check_mistral, settle_class, stock_accepts_heads

__all__ = [
    "PruningPlan",
    "add_consumer_biases",
    "apply_plan",
    "as_mistral",
    "check_compensation",
    "check_mistral",
    "check_plan",
    "fingerprint",
    "has_batch_norms",
    "masked",
    "recalibrate_norms",
    "refitted",
    "settle_class",
    "stock_accepts_heads",
    "zero_masked",
]
