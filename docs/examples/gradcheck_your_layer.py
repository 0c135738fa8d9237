"""Check the gradient of a layer of your own: once when it is right, and once when it is wrong.

    python docs/examples/gradcheck_your_layer.py

The layer is a leaky sum over time, y_t = a y_{t-1} + x_t, with one decay a per channel. Your layer needs the library's
convention and nothing else: `forward(**inputs)` returns y and a cache, and `backward(dy, cache)` returns one gradient per input,
in the order of the inputs. The check needs SciPy, which the extra `check` installs.
"""

import numpy as np

from tensorlite import gradcheck


def leaky_sum_forward(x, a):
    """y_t = a y_{t-1} + x_t, with y_{-1} = 0.

    x: (B, T, C) float.
    a: (C,) float, the decay of each channel.
    Returns y: (B, T, C), and a cache of references to y and a.
    """
    y = np.empty_like(x)
    previous = np.zeros_like(x[:, 0])  # (B, C)
    for t in range(x.shape[1]):
        y[:, t] = a * previous + x[:, t]
        previous = y[:, t]
    return y, (y, a)


def leaky_sum_backward(dy, cache):
    """dx_t = g_t,  da = sum of g_t y_{t-1},  with  g_t = dy_t + a g_{t+1}.

    dy: (B, T, C). Returns dx: (B, T, C) and da: (C,).

    Derivation, with g_t the gradient of y_t along all paths:
      1. y_t is an output, and y_{t+1} takes a times y_t: g_t = dy_t + a g_{t+1}, which runs backwards in time.
      2. x_t is added to y_t:                             dx_t = g_t.
      3. a multiplies y_{t-1} in every row and step:      da = sum over rows and t of g_t y_{t-1}.
    """
    y, a = cache
    g = np.empty_like(dy)
    following = np.zeros_like(dy[:, 0])  # (B, C)
    for t in reversed(range(dy.shape[1])):
        g[:, t] = dy[:, t] + a * following  # 1.
        following = g[:, t]
    da = (g[:, 1:] * y[:, :-1]).sum(axis=(0, 1))  # 3. (B, T-1, C) -> (C,), as y_{-1} is zero
    return g, da  # 2.


def forgetful_backward(dy, cache):
    """The same with a mistake that is easy to make: y_t is taken for an output alone, so step 1 loses its second term."""
    y, _ = cache
    da = (dy[:, 1:] * y[:, :-1]).sum(axis=(0, 1))
    return dy.copy(), da


# The inputs are random and of size about 1. Zeros and ones would hide mistakes. All axes have different lengths, so that a
# swapped axis cannot hide either. Gradients are proven in float64.
random = np.random.default_rng(seed=0)
inputs = {"x": random.standard_normal((2, 4, 3)), "a": random.uniform(0.5, 0.9, size=3)}

print("The right backward:")
right = gradcheck(leaky_sum_forward, leaky_sum_backward, inputs)  # it would raise GradcheckError if anything were wrong
print(right)

print("\nThe backward that forgets the later steps:")
wrong = gradcheck(leaky_sum_forward, forgetful_backward, inputs, raise_on_fail=False)
print(wrong)

# The report compares the two gradients entry by entry. Here it says that dx is wrong in 18 of 24 entries. The six that are
# right are those of the last step, t = 3, which has no later steps to forget: the pattern leads to the mistake.
checked = {argument.name: argument for argument in wrong.arguments}
print(f"\ndx is wrong in {checked['x'].bad} of {inputs['x'].size} entries. Those of the last step are right.")
