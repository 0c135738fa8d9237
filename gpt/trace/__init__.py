"""One training step, number by number: the recorder, a formula per line, and the page made from both (python -m gpt.trace)."""
