"""Recovery: the one fine-tuning stage after pruning."""
