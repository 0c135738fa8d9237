"""Checks of the CUDA backend's random bits, batches and optimizer against the reference."""

import numpy as np
import pytest

import cuda_machines as machines
from cuda_bounds import FLOAT32, REFERENCE, F
from cuda_machines import generator
from tensorlite import Key, loss_scale
from tensorlite.cuda.loss_scale import DeviceLossScale
from tensorlite.cuda.runtime.device_key import DeviceStep
from tensorlite.integers import round_up
from tensorlite.loss_scale import LossScale
from tensorlite.random import _lanes, fold_in, keep_mask, step_key

MASKED = [((3, 5, 33), 0), ((3, 5, 33), 7), ((2, 9, 32), 0), ((2, 9, 32), 5), ((7, 1), 1), ((1, 1030), 3)]


def mask_of(key, shape, p):
    return keep_mask(np, key, shape, p)


def masks_of_dropout_and_residual(both, shape, row0, p):
    """The inputs are ones, so an element that is not 0 was kept. There are earlier rows, and arrays that begin within a counter."""
    key = Key(1, 2**31 + 7, row0)
    ones, zeros, expected = np.ones(shape, both.dtype), np.zeros(shape, both.dtype), mask_of(key, shape, p)

    def run(ops, ones, zeros):
        y, dropout_cache = ops.dropout_forward(ones, p, key)
        out, residual = ops.residual_forward(zeros, ones, p, key)
        return y, ops.dropout_backward(ones, dropout_cache), out, ops.residual_backward(ones, residual)[1]

    for found in both.run(run, ones, zeros):
        np.testing.assert_array_equal(found != 0, expected)


def masks_of_dropout_add_layernorm(both, C, row0):
    key, shape = Key(3, 4, row0), (3, 3, C)
    ones, zeros, w = np.ones(shape, both.dtype), np.zeros(shape, both.dtype), np.ones(C, both.dtype)
    expected = mask_of(key, shape, 0.3)

    def run(ops, ones, zeros, w):
        (s, _), cache = ops.dropout_add_layernorm_forward(zeros, ones, w, None, 0.3, key)
        return s, ops.dropout_add_layernorm_backward((ones, zeros), cache)[1]  # dh = 0: dx is ones

    for found in both.run(run, ones, zeros, w):
        np.testing.assert_array_equal(found != 0, expected)


def masks_of_attention(both, T, D, row0):
    """All scores are 0 and v is the identity, so y_ts is not 0 where probability (t, s) was kept. The same holds for dv and dy."""
    B, H, p, key = 2, 2, 0.4, Key(11, 12, row0)
    expected = mask_of(key, (B, H, T, T), p) & np.tri(T, dtype=bool)
    identity = np.broadcast_to(np.eye(T, D)[:, None], (B, T, H, D))
    qkv = np.concatenate([np.zeros((B, T, 2 * H * D)), identity.reshape(B, T, -1)], axis=-1).astype(both.dtype)
    dy = np.ascontiguousarray(identity).reshape(B, T, -1).astype(both.dtype)

    def run(ops, qkv, dy):
        y, cache = ops.attention_forward(qkv, H, p, key)
        return y, ops.attention_backward(dy, cache)[..., 2 * H * D :]

    y, dv = (a.reshape(B, T, H, D).transpose(0, 2, 1, 3)[..., :T] for a in both.run(run, qkv, dy))
    np.testing.assert_array_equal(y != 0, expected)
    np.testing.assert_array_equal(dv.swapaxes(-1, -2) != 0, expected)


def threshold(both, element=0):
    key = Key(1, 2)
    p = int(_lanes(np, key, 0, 8)[element]) / 65536
    for probability, kept in ((p, True), (p + 1 / 65536, False)):
        (found,) = both.run(lambda ops, x, p=probability: ops.dropout_forward(x, p, key)[0], np.ones((32,), np.float32))
        assert (found[element] != 0) == kept
        np.testing.assert_array_equal(found != 0, mask_of(key, (32,), probability))


def device_key(both, seed=7, step=3):
    """A kernel derives the key from a step number in memory. It must equal the key derived on the host bitwise."""
    r, row0 = generator(6), 3
    x, y, w = both.draw(r, 2, 8, 32), both.draw(r, 2, 8, 32), both.draw(r, 32)
    small, wide = both.draw(r, 2, 8, 3 * 15), both.draw(r, 2, 8, 3 * 32)
    data = r.integers(0, 200, 1000).astype(np.uint8)

    def run(ops, key, x, y, w, small, wide, data):
        results = []
        for name, p, arrays in (("dropout", 0.3, (x,)), ("residual", 0.3, (x, y)), ("dropout_add_layernorm", 0.3, (x, y, w, None))):
            out, cache = getattr(ops, f"{name}_forward")(*arrays, p, ops.fold_in(key, 2, name))
            results += [out, getattr(ops, f"{name}_backward")((x, y) if name == "dropout_add_layernorm" else y, cache)]
        for qkv, H in ((small, 3), (wide, 2)):
            out, cache = ops.attention_forward(qkv, H, 0.3, ops.fold_in(key, 0, "attention"))
            results += [out, ops.attention_backward(out, cache)]
        return *results, ops.get_batch(data, ops.fold_in(key, 0, "batch"), 5, 9)

    def on_device(ops, *arrays):
        device_step = DeviceStep(machines.guarded(ops, np.array(step, np.int64)))
        return run(ops, ops.step_key(seed, device_step, row0), *arrays)

    arrays = (x, y, w, small, wide, data)
    expected = both.run(lambda ops, *a: run(ops, step_key(seed, step, row0), *a), *arrays)
    for a, b in zip(both.run(on_device, *arrays), expected, strict=True):
        np.testing.assert_array_equal(machines.as_bytes(a), machines.as_bytes(b))
    assert len({machines.as_bytes(a).tobytes() for a in expected[:4]}) == 4


def batch(both, dtype=np.uint8, rows=5, T=300, row0=3, counted=None):
    """Check get_batch. counted: a step number in device memory, or None."""
    key = Key(4, 5, row0) if counted is None else fold_in(step_key(9, counted, row0), 2, "batch")
    data = generator(8).integers(0, 100, T + 1000).astype(dtype)

    def run(ops, data):
        device_step = DeviceStep(machines.guarded(ops, np.array(counted or 0, np.int64)))
        return ops.get_batch(data, key if counted is None else ops.fold_in(ops.step_key(9, device_step, row0), 2, "batch"), rows, T)

    found = both.run(run, data)
    for a, b in zip(found, REFERENCE.get_batch(data, key, rows, T), strict=True):
        assert a.dtype == dtype
        np.testing.assert_array_equal(a, b)


UPDATE = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.3}
SCHEDULE = {"lr": 0.02, "min_lr": 0.003, "warmup": 3, "total": 7}


def adamw(both, n=1003, n_decay=501, steps=9, counted=False):
    """Compare every step of a run, over warmup, cosine and the rest, with one update of the reference from the same values.

    Return the worst errors of params, m and v. Each of these is rounded a few times; the update itself, lr m / sqrt(v), has the
    roundings of its factors.
    """
    r, worst = generator(n, n_decay or 0), [0.0] * 3
    params, m, v = r.standard_normal(n).astype(np.float32), np.zeros(n, np.float32), np.zeros(n, np.float32)
    for step in range(steps):
        grads = (r.standard_normal(n) * 10.0 ** r.uniform(-4, 1, n)).astype(np.float32)

        def update(ops, params, grads, m, v, step=step):
            params, m, v = (machines.guarded(ops, a) for a in (params, m, v))
            step = DeviceStep(machines.guarded(ops, np.array(step, np.int64))) if counted else step
            lr = ops.cosine_lr(step, *SCHEDULE.values())
            ops.adamw_(params, grads, m, v, step + 1, lr, n_decay=n_decay, **UPDATE)
            return params, m, v

        expected = params_64, m_64, v_64 = [a.astype(np.float64) for a in (params, m, v)]
        decayed = np.abs(params_64) * (np.arange(n) < (n if n_decay is None else n_decay))
        before = params_64.copy()
        lr = REFERENCE.cosine_lr(step, *SCHEDULE.values())
        REFERENCE.adamw_(params_64, grads.astype(np.float64), m_64, v_64, step + 1, lr, n_decay=n_decay, **UPDATE)
        moved = np.abs(params_64 - before * np.where(decayed > 0, 1 - lr * UPDATE["weight_decay"], 1.0))
        terms = np.abs(0.8 * m) + np.abs(0.2 * grads)
        slope = np.abs(moved / np.maximum(np.abs(m_64), 1e-30))  # the derivative of params by m
        inexact = [2 * F * decayed + 5 * F * moved + 2 * F * slope * terms, 2 * F * terms, 3 * F * np.abs(v_64)]
        params, m, v = both.run(update, params, grads, m, v)
        ratios = [machines.close(a, e, FLOAT32, off) for a, e, off in zip((params, m, v), expected, inexact, strict=True)]
        worst = [max(pair) for pair in zip(worst, ratios, strict=True)]
    return worst


def cosine_lr(both, *schedule):
    """Read the rate off the size of an update: with beta1 = beta2 = eps = 0, m / sqrt(v) is the sign of the gradient."""
    for step in range(9):

        def update(ops, step=step):
            params, grads, m, v = (machines.guarded(ops, np.full(5, x, np.float32)) for x in (0.0, 0.5, 0.0, 0.0))
            device_step = DeviceStep(machines.guarded(ops, np.array(step, np.int64)))
            ops.adamw_(params, grads, m, v, device_step + 1, ops.cosine_lr(device_step, *schedule), beta1=0.0, beta2=0.0, eps=0.0)
            return params

        (params,) = both.run(update)
        np.testing.assert_array_equal(params, np.full(5, -REFERENCE.cosine_lr(step, *schedule), np.float32))


def clipped(both, n=1003, max_norm=1.0):
    """A sum of squares in pieces has few roundings, and its root half as many; clipping adds three."""
    grads = generator(n).standard_normal(n).astype(np.float32)

    def clip(ops, grads):
        mine = machines.guarded(ops, grads)
        return ops.global_norm(mine), ops.clip_grad_norm_(mine, max_norm), mine

    expected = grads.astype(np.float64)
    norm = REFERENCE.clip_grad_norm_(expected, max_norm)
    found = both.run(clip, grads)
    assert found[0] == found[1]
    machines.close(np.asarray(found[0]), norm, FLOAT32, 4 * F * norm)
    machines.close(found[2], expected, FLOAT32, 7 * F * np.abs(expected) if 0 < max_norm < norm else 0.0)


def every_second(a):
    return np.repeat(a, 2, axis=-1)[..., ::2]


def transposed(a):
    return np.ascontiguousarray(a.T).T


def off_by_one(a):
    """Copy an array, contiguously, to an address that no vector load may have."""
    room = np.zeros(a.size + 17, a.dtype)
    start = next(i for i in range(1, 17) if (room.ctypes.data + i * a.itemsize) % 16)
    view = room[start : start + a.size].reshape(a.shape)
    view[...] = a
    return view


def pack_grads(both, add=True, count=301):
    """Pack arrays of one and of many blocks, transposed ones and ones at odd addresses, by default in three launches."""
    r = generator(10)
    kinds = (1,), (3,), (4, 5), (17, 3), (1001,), (33,)
    shapes = [kinds[i % 6] for i in range(count - 1)] + [(70, 300)]
    leaves = [r.standard_normal(shape).astype(np.float32) for shape in shapes]
    before = [r.standard_normal(shape).astype(np.float32) for shape in shapes]

    def run(ops, *arrays):
        layout = (transposed, off_by_one, np.array)
        mine = [layout[i % 3](a) if a.ndim > 1 or i % 3 else a for i, a in enumerate(arrays[: len(leaves)])]
        slots = [machines.guarded(ops, a) for a in arrays[len(leaves) :]]
        ops.pack_grads(mine, slots, add=add)
        return tuple(slots)

    for leaf, slot, found in zip(leaves, before, both.run(run, *leaves, *before), strict=True):
        np.testing.assert_array_equal(found, slot + leaf if add else leaf)


def squares_of_a_step(both, count=130, scale=1.0):
    """The norm of gradients that were packed twice within a step, in two launches. It is that of their sum, loss scale apart."""
    r = generator(14)
    sizes = [1 + 7 * i % 60 for i in range(count - 1)] + [21000]  # of some blocks; each slot begins at a multiple of 64
    begins = np.cumsum([0, *(round_up(size, 64) for size in sizes)])
    leaves = [r.standard_normal(size).astype(np.float32) * np.float32(scale) for size in sizes]

    def run(ops, *leaves):
        buffer = machines.guarded(ops, np.zeros(begins[-1], np.float32))
        slots = [buffer[begin : begin + size] for begin, size in zip(begins[:-1], sizes, strict=True)]
        with WithLossScale(ops, LossScale(scale)), ops.step():
            for add in (False, True):
                ops.pack_grads(leaves, slots, add=add)
            assert ops.step_sums.squares is not None
            norm = ops.global_norm(buffer)
            assert ops.step_sums.squares is None
        return norm, buffer

    norm, buffer = both.run(run, *leaves)
    machines.close(np.asarray(norm), np.sqrt(np.square(buffer.astype(np.float64)).sum()), FLOAT32, 4 * F * norm)


class WithLossScale:
    """A context in which a backend has this loss scale. overflow: whether the step's gradient has overflowed."""

    def __init__(self, ops, scale, overflow=False):
        self.ops, self.value, self.overflow = ops, scale, overflow

    def __enter__(self):
        self.ops.loss_scale = DeviceLossScale(self.ops.runtime, self.value)
        self.ops.loss_scale.array[3] = self.overflow
        return self.ops.loss_scale.array

    def __exit__(self, *_):
        self.ops.loss_scale = None


def loss_scale_rule(both):
    """The scale, the counts and the flag after each of many norms, from scales in the middle and at the bounds."""
    norms = np.array([1, 1, np.inf, 1, 1, 1, np.nan, 1, 1, 1, 1, 1, -np.inf, np.inf, np.inf, 0, 3e38, 1, 1, 1], np.float32)

    def follow(ops, norms, start):
        seen = []
        with WithLossScale(ops, start) as array:
            for norm in norms:
                grads = machines.guarded(ops, np.array([norm, 0.0], np.float32))
                ops.clip_grad_norm_(grads, 0.0)
                seen.append(array.copy())
        return tuple(seen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_scale, "GROWTH_INTERVAL", 3)
        for start in (LossScale(2.0), LossScale(1.0, 1, 7), LossScale(loss_scale.MAX_SCALE, 2)):
            scale = start
            found = both.run(lambda ops, norms, start=start: follow(ops, norms, start), norms)
            for norm, fields in zip(norms, found, strict=True):
                overflow = not np.abs(norm) < 1e19  # the square of a larger norm is infinite
                scale = scale.after(np.inf if overflow else norm)
                np.testing.assert_array_equal(fields, [scale.scale, scale.finite_steps, scale.skipped_steps, overflow])


def unscaled_gradients(both):
    """Packing divides by the scale, where it adds too. Infinite elements stay infinite, and NaN stays NaN."""
    r = generator(12)
    leaf, before = (r.standard_normal((37, 9)).astype(np.float32) for _ in range(2))
    leaf[0, :2] = np.inf, np.nan

    def pack(ops, leaf, before):
        slots = machines.guarded(ops, before), machines.guarded(ops, before)
        with WithLossScale(ops, LossScale(2.0**20)):
            for slot, add in zip(slots, (False, True), strict=True):
                ops.pack_grads([leaf], [slot], add=add)
        return slots

    copied, added = both.run(pack, leaf, before)
    np.testing.assert_array_equal(copied, leaf / 2.0**20)
    np.testing.assert_array_equal(added, before + leaf / 2.0**20)


def skipped_update(both):
    """After an overflow AdamW writes nothing, also where gradients are finite. Otherwise its t leaves out the skipped steps."""
    r = generator(13)
    arrays = [np.abs(r.standard_normal(1003)).astype(np.float32) for _ in range(4)]

    def update(ops, *arrays, step, scale, overflow):
        params, grads, m, v = (machines.guarded(ops, a) for a in arrays)
        with WithLossScale(ops, scale, overflow):
            ops.adamw_(params, grads, m, v, step, 0.1, n_decay=500, **UPDATE)
        return params, m, v

    params, _, m, v = arrays
    skipped = both.run(lambda ops, *a: update(ops, *a, step=9, scale=LossScale(4.0, 0, 5), overflow=True), *arrays)
    made = both.run(lambda ops, *a: update(ops, *a, step=9, scale=LossScale(4.0, 0, 5), overflow=False), *arrays)
    expected = both.run(lambda ops, *a: update(ops, *a, step=4, scale=LossScale(), overflow=False), *arrays)
    for a, b in zip((*skipped, *made), (params, m, v, *expected), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (made[0] != params).all()


def end_of_step(both):
    """end_step stores loss and norm in slot step % ring_size of the ring, and increments the step number."""

    def end(ops, ring, loss, norm):
        counter, ring = machines.guarded(ops, np.array(2**33 + 5, np.int64)), machines.guarded(ops, ring)
        for _ in range(2):
            ops.launch("optim.cu", "end_step", 1, 1, step=counter, loss=loss, norm=norm, loss_ring=ring, ring_size=7)
        return counter, ring

    counter, ring = both.run(end, np.zeros((7, 2), np.float32), np.float32(1.5)[None], np.float32(2.5)[None])
    assert counter == 2**33 + 7
    expected = np.zeros((7, 2))
    expected[[(2**33 + 5) % 7, (2**33 + 6) % 7]] = 1.5, 2.5
    np.testing.assert_array_equal(ring, expected)
