"""`python -m tensorlite.exercises`: the program is tensorlite/testing/exercises.py."""

import sys

from tensorlite.testing.exercises import main

if __name__ == "__main__":
    sys.exit(main())
