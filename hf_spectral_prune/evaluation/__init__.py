"""Evaluation: the one ruler that measures a model before and after."""
