"""Runs gpt/train.py, which trains a model; python train.py --help lists its flags."""

import sys

try:
    from gpt.train import main
except ModuleNotFoundError as error:
    print(f"error: {error}; install what train.py needs: python -m pip install -e .", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
