"""The proofs behind docs/reliability.md, at full count:   make prove

Each is run alone as `PYTHONPATH=.:tests/support python -m prove.NAME`; tests/repo/test_prove.py runs a part of each.
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy loads: a process with threads must not fork
