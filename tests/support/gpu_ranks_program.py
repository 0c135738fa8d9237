"""The program that each rank of test_distributed.py runs under mpiexec.

    python gpu_ranks_program.py COUNT PCI,PCI,...

It sees so many GPUs, with those numbers on the bus. It says which one it takes, or why it takes none.
"""

import sys

from fake_cupy import Gpus, StandIn
from gpt.errors import ConfigError
from gpt.training.distributed import init_distributed, on_device
from tensorlite import pick_device

count, pci = int(sys.argv[1]), [int(number) for number in sys.argv[2].split(",") if number != "-"]
gpus = Gpus(count, pci)
sys.modules |= {"cupy": gpus.cupy, "cupy.cuda": gpus.cupy.cuda}
sys.modules["cupy.cuda.nccl"] = StandIn(
    "cupy.cuda.nccl",
    available=True,
    NCCL_SUM=0,
    NCCL_FLOAT32=7,
    NCCL_FLOAT64=8,
    NcclCommunicator=lambda size, unique, rank: None,
    get_unique_id=lambda: b"id",
)
ranks = init_distributed()
device = pick_device("auto", ranks.local_rank)
try:
    ranks = on_device(ranks, device.xp)
    said = f"gpu {gpus.cupy.cuda.Device().pci_bus_id}" if count else "cpu"
    assert {number for _, number in gpus.used} <= {gpus.current}, "another rank's device was touched"
except ConfigError as error:
    said = str(error)
sys.stdout.write(said + "\n")
