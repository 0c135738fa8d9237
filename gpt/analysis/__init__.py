"""Cost, time and memory of a run, and the gradient check of whole models."""
