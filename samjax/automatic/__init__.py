"""Masks of everything in an image, and of everything in many."""
