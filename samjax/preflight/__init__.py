"""The training step compiled for hardware that is not there: memory, network and time."""
