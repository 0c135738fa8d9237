"""The names of the kernels that OpenBLAS and NumPy choose on this processor. Two machines with the same names compute the same."""

import numpy as np
import threadpoolctl


def kernels():
    """One line: each BLAS that is loaded with its kernels, and what NumPy's own loops take beyond the least."""
    blas = sorted(
        {
            f"{x['internal_api']} {x['version']} {x.get('architecture', '')}".strip()
            for x in threadpoolctl.threadpool_info()
            if x["user_api"] == "blas"
        }
    )
    multiarray = np._core._multiarray_umath
    taken = [name for name in multiarray.__cpu_dispatch__ if multiarray.__cpu_features__.get(name)]
    return f"BLAS {', '.join(blas) or 'unknown'} | NumPy {np.__version__} {' '.join(taken) or 'no more than its baseline'}"


if __name__ == "__main__":
    np.ones((64, 64)) @ np.ones((64, 64))  # a kernel that this processor cannot run ends here
    print(kernels())
