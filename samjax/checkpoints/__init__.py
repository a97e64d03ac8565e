"""A run on disk: its config, and its parameters in Orbax checkpoints."""
