"""Write text with a trained model: python sample.py --help. The program is gpt/sample.py."""

import sys

from gpt.sample import main

if __name__ == "__main__":
    sys.exit(main())
