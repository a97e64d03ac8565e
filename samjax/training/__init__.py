"""Training: click simulation, losses, optimizer, step, loop, checkpoints and logs."""
