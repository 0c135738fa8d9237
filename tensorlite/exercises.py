"""`python -m tensorlite.exercises`: the program is tensorlite/testing/exercises/command.py."""

import sys

from tensorlite.testing.exercises.command import main

if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader of the output, such as `head`, has exited
        sys.stderr.close()
        sys.exit(141)
