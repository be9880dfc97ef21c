"""Passes over the model that some criteria need: gradients, curvature, histograms, interpolation."""
