"""One training step, the loop around it, and its parts: workers, checkpoints, a run's folder."""
