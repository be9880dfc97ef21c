"""Studies: comparison of criteria, direct ablation, detrimental neurons, neural differentiation."""
