"""Runs gpt/train.py: python train.py --help trains a model of the lecture."""

import sys

from gpt.train import main

if __name__ == "__main__":
    sys.exit(main())
