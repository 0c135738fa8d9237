"""Train a model of the lecture: python train.py --help. The program is gpt/train.py."""

import sys

from gpt.train import main

if __name__ == "__main__":
    sys.exit(main())
