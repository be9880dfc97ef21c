"""The model card of a saved folder."""
