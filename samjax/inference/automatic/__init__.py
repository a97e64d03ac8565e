"""Automatic mask generation: masks of all objects in an image."""
