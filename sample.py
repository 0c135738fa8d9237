"""Runs gpt/sample.py, which writes text with a trained model; python sample.py --help lists its flags."""

import sys

try:
    from gpt.sample import main
except ModuleNotFoundError as error:
    print(f"error: {error}; install what sample.py needs: python -m pip install -e .", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
