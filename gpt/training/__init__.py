"""One training step, the loop around it, and what the loop needs: workers, checkpoints, a run's folder."""
