"""Runs gpt/train.py, which trains a model; python train.py --help lists its flags."""

import sys

from gpt.train import main

if __name__ == "__main__":
    sys.exit(main())
