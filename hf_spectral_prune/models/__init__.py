"""Models: families, the Cria classes, loading, losses, and walking the layers."""
