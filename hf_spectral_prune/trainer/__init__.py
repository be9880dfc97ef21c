"""Pruning and scoring inside any Trainer."""
