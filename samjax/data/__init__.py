"""Data sets: formats on disk, ArrayRecord files, synthetic scenes, and the training input."""
