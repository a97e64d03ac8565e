"""Attention with relative positions: the definition, and faster functions for each platform."""
