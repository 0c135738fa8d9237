"""The first cell of the course's notebook, and its last part above the training cells."""

# %% [markdown]
# # The course, with holes to fill
#
# This notebook goes with the [course](README.md), backpropagation through a transformer by hand. It
# has the question of each chapter, a prediction to make, numbers to compute with a pencil, the code,
# and a function to write. **The derivations are in the chapters**, which the cells link.
#
# - **Predict** before you open an answer.
# - **Run** the code. A cell that ends without an error has found all numbers to be as computed by hand.
# - **Write.** A function has a hole, `raise NotImplementedError`. Replace it, run the cell, and run
#   the next one. It says whether your function is right and which gradient is wrong. Where it calls
#   `check`, a last argument `hint=2` or `hint=3` says more.
#
# You can begin at any chapter, after you have run the next cell. It finds the repository and installs
# the packages that are missing. On Colab and Kaggle the links do not work: there, open the chapters in
# `docs/course` of the folder that the cell prints.

# %% [markdown]
# ## Train a model and let it write
#
# All of this is in one program. The preset `laptop` is a GPT with 0.8 million parameters. Its 2000
# steps took 51 s on 2 CPU cores. The program prints the time to expect on this machine, and saves the
# model in `runs/course`. The first run downloads the text, 1.1 MB.
#
# Predict the loss of the untrained model, which has 65 characters to choose from. What loss does a
# table of next characters reach ([chapter 6](06-cross-entropy.md)), and how much lower will this
# model be?

# %% [parameters]
ARGUMENTS = "--preset laptop"
