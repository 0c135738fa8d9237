"""One training step, number by number: a recorder, a formula per line, and the page made from both.

`python -m gpt.trace` makes the page; docs/trace.md says what it shows.
"""
