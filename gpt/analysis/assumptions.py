"""What the model of a step (step_model.py) assumes and no datasheet says. Nothing here was measured on a GPU by this project.

The figures were chosen once, before any kernel was made faster for them, and they stay as they are. Otherwise the model could not
tell whether a change of a kernel helps. benchmarks/gpu.py compares the model with measured times.
"""

# Rates

CLOCK = 0.9  # of the boost clock: what cards sustain under load
BANDWIDTH = 0.875  # of the datasheet's bandwidth: what large copies reach on data-centre and GeForce cards
PIPE = 0.75  # of an arithmetic pipe's rate: dependent instructions and barriers leave slots empty
QUEUED = (
    0.9  # of the load/store pipe's rate and of the schedulers' slots: they work from queues, which dependences empty less often
)
MMA_SYNC = {90: 0.62, 100: 0.5, 103: 0.5}  # of the tensor cores' peak: what warp-level mma reaches where wgmma or tcgen05 exist
GEMM = 0.75  # of the tensor cores' peak: the inner loop of cuBLASLt's kernels, with the power limit of the card

# Lanes per clock and multiprocessor that no column of gpus.MULTIPROCESSORS has. They are from the table of arithmetic throughput in
# the CUDA C++ Programming Guide, and are the same from compute capability 7.0 to 12.0.

ALU_LANES = 64  # integer additions, logic, shifts, comparisons, selections
MULTIPLY_LANES = 64  # integer multiply-add; the compiler also uses it to add and to move
SPECIAL_LANES = 16  # exponentials, reciprocals, conversions to and from integers
ISSUE_LANES = 128  # one instruction of a warp per clock on each of four schedulers

# Times that do not depend on the amount of work

GAP = 0.8e-6  # seconds between two dependent nodes of a CUDA graph
RAMP = 2.0e-6  # seconds in which a kernel's blocks start and its last ones end: about what an empty kernel takes
MEMORY_LATENCY = 600  # clocks until a load from memory returns

# GEMMs. A block computes a tile of 128 x 128.

TILE = 128
TILE_START = 150  # columns of K that would take as long as a tile's first loads and its last stores
MAX_SPLIT = 32  # the most parts of a split-K GEMM
# Instructions per element that an epilogue adds to a GEMM and that nothing hides, if cuBLASLt computes it in the same kernel.
# Where it does not, the autotuner takes a kernel of ours, which costs more. bias_grad reads each element of b once more.
EPILOGUE = {"bias": 1.0, "pre_gelu": 6.0, "dgelu_input": 8.0, "bias_grad": 2.0}
