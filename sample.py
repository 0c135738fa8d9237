"""Runs gpt/sample.py: python sample.py --help writes text with a trained model."""

import sys

from gpt.sample import main

if __name__ == "__main__":
    sys.exit(main())
