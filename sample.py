"""Runs gpt/sample.py, which writes text with a trained model; python sample.py --help lists its flags."""

import sys

from gpt.sample import main

if __name__ == "__main__":
    sys.exit(main())
