"""The program that each rank of test_data_parallel.py runs under mpiexec.

    python ranks_program.py OUT SHARDS BATCH ACCUMULATION BACKEND

Writes the losses of 100 steps and the final parameters of this rank to OUT-RANK.npz.
"""

import sys

import numpy as np

from curves import curve
from gpt.training.distributed import init_distributed

out, shards, batch, accumulation, backend = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
ranks = init_distributed()
losses, state, val = curve(shards, batch, accumulation, backend, threads=1, ranks=ranks)
np.savez(f"{out}-{ranks.rank}.npz", losses=losses, params=state.params, val=val)
