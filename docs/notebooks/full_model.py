"""The cells of the notebook for hosted GPUs, above its training cells."""

# %% [markdown]
# # The full model of the lecture, on a hosted GPU
#
# **No GPU has run this notebook yet**, nor any other part of the GPU backend. The tests run it on a
# CPU, with a smaller model and three steps. So expect the first error on a GPU to be ours, and please
# report it.
#
# It trains the preset `shakespeare`: 10.8 million parameters, context 256, 5000 steps, as in Andrej
# Karpathy's lecture *Let's build GPT*, whose validation loss is 1.48. It then shows the curve of the
# loss and a text that the model wrote.
#
# Any GPU of compute capability 6.0 or later will do. The program computes in bf16 on 8.0 and later
# (L4, A100, H100), in fp16 on 7.5 (T4), and in float32 on older ones (P100, V100), which is slower.
# [docs/gpu.md](../gpu.md) describes the backend.

# %% [parameters]
ARGUMENTS = "--preset shakespeare --device cuda"  # what train.py gets

# %% [markdown]
# ## The packages for the GPU
#
# `nvidia-smi` names the CUDA version of the driver, and pip installs CuPy for it. This takes minutes.

# %%
CUDA_PACKAGES = {
    12: ["@cuda12x@"],
    13: ["@cuda13x@"],
}
NO_GPU = """\
There is no NVIDIA GPU here: nvidia-smi does not run. Choose a machine with one:
  Colab    Runtime, Change runtime type
  Kaggle   Settings, Accelerator
Or train a small model on this machine's CPU: ARGUMENTS = "--preset laptop --device cpu"."""


def cuda_version():
    """Return the CUDA version to install for: the driver's, or 12 where a CuPy for it is installed, which newer drivers can run."""
    try:
        smi = subprocess.run(["nvidia-smi"], stdout=subprocess.PIPE, text=True)
    except OSError:
        raise Stop(NO_GPU) from None
    found = re.search(r"CUDA (?:UMD )?Version: *(\d+)", smi.stdout)
    if smi.returncode or found is None:
        raise Stop(f"{NO_GPU}\n{smi.stdout}")
    print(smi.stdout)
    if int(found[1]) < min(CUDA_PACKAGES):
        raise Stop(f"The driver has CUDA {found[1]}, and the GPU backend needs 12 or 13.")
    return 12 if installed_version("cupy-cuda12x") else min(int(found[1]), max(CUDA_PACKAGES))


if "--device cpu" not in ARGUMENTS:
    install(CUDA_PACKAGES[cuda_version()])

# %% [markdown]
# ## Train
#
# The program compiles its kernels, times one step, and prints how long the run will take. No such
# time has been measured on a GPU, so none is given here.
#
# If you interrupt the cell, the run is saved; `--resume` at the end of ARGUMENTS continues it. The
# folder `runs` is lost with the machine, so download `runs/full-model` if you want to keep the model.
