"""Checkpoints of PyTorch to ours and back, without PyTorch."""
