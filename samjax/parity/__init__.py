"""Meta's own PyTorch model, and how much ours differs from it."""
