"""`python -m gpt.trace`: the program is gpt/trace/program.py."""

import sys

from gpt.trace.program import main

sys.exit(main())
