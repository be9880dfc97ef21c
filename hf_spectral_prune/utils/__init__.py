"""Files, words, environment and types that every room may use."""
