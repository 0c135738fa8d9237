"""`python -m tensorlite.exercises`: the program is tensorlite/testing/exercises/command.py."""

import errno
import os
import sys

from tensorlite.testing.exercises.command import main

READER_GONE = 141  # 128 + SIGPIPE: what a shell reports for a program whose reader has left

if __name__ == "__main__":
    try:
        status = main()
        print(end="", flush=True)
    except OSError as error:
        if error.errno != errno.EPIPE and (os.name, error.errno) != ("nt", errno.EINVAL):
            raise
        # The reader of the output, such as `head`, has exited; Windows says EINVAL of it.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # or the interpreter would fail to flush the rest
        status = READER_GONE
    sys.exit(status)
