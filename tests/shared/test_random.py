"""The counter-based generator: published vectors, shards, and independence of masks."""

import itertools
import math
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import references
from tensorlite import Key, ReferenceOps
from tensorlite.random import CHUNK, SMALL_BATCH, drop_threshold, fold_in, keep_mask, random_uint64, step_key, threefry2x32

# Known answers, published with the library of the paper: rounds, counter, key, result.
KNOWN = [
    (13, (0, 0), (0, 0), (0x9D1C5EC6, 0x8BD50731)),
    (13, (0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0xFD36D048, 0x2D17272C)),
    (13, (0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xBA3E4725, 0xF27D669E)),
    (20, (0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    (20, (0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    (20, (0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("rounds", "counter", "key", "result"), KNOWN)
def test_published_vectors(rounds, counter, key, result):
    c0, c1 = (np.array([c], np.uint32) for c in counter)
    assert tuple(int(x[0]) for x in threefry2x32(np, *key, c0, c1, rounds)) == result
    assert references.threefry(*key, *counter, rounds) == result


words = st.integers(0, 2**32 - 1)


@given(words, words, words, words)
def test_equals_the_plain_integer_version(k0, k1, c0, c1):
    x0, x1 = threefry2x32(np, k0, k1, np.array([c0], np.uint32), np.array([c1], np.uint32))
    assert (int(x0[0]), int(x1[0])) == references.threefry(k0, k1, c0, c1)


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 9), st.sampled_from([0.1, 0.2, 0.5]))
def test_a_shard_sees_its_rows_of_the_whole_mask(first, rows, width, p):
    """The mask is a slice of one long mask, whatever the first row and the position in a counter."""
    key = Key(11, 22)
    whole = keep_mask(np, key, (first % 50 + rows, width), p)
    shard = keep_mask(np, key._replace(row0=first % 50), (rows, width), p)
    np.testing.assert_array_equal(shard, whole[first % 50 :])


def test_chunks_leave_no_seam():
    """A mask over several chunks equals masks of its parts."""
    n = 4 * (2 * CHUNK + 5)
    whole = keep_mask(np, Key(1, 2), (n,), 0.5)
    rows = [keep_mask(np, Key(1, 2, row0=r), (4,), 0.5) for r in (4 * CHUNK - 4, 4 * CHUNK, 8 * CHUNK)]
    np.testing.assert_array_equal(np.concatenate(rows), whole[np.r_[4 * CHUNK - 4 : 4 * CHUNK + 4, 8 * CHUNK : 8 * CHUNK + 4]])


def test_counters_beyond_32_bits():
    """The stream does not repeat after 2^34 elements."""
    far = Key(1, 2, row0=2**34)
    assert not np.array_equal(keep_mask(np, far, (64,), 0.5), keep_mask(np, Key(1, 2), (64,), 0.5))
    x = np.ones(64)
    np.testing.assert_array_equal(keep_mask(np, far, (64,), 0.5), references.dropout(x, 0.5, far) > 0)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.2, 0.5, 0.999, 0.9999999])
def test_the_keep_probability_is_the_documented_one(p):
    n = 1 << 20
    keep = 1 - drop_threshold(p) / 65536
    assert abs(keep_mask(np, step_key(3, 4), (n,), p).mean() - keep) <= 5 * math.sqrt(keep * (1 - keep) / n)


def test_masks_of_different_steps_sites_and_rows_do_not_correlate():
    n = 1 << 16
    keys = [
        fold_in(step_key(seed, step), layer, name) for seed, step, layer, name in itertools.product((0, 1), (0, 1), (0, 1), "ab")
    ]
    keys.append(keys[0]._replace(row0=n))
    masks = np.array([keep_mask(np, key, (n,), 0.5) for key in keys]) * 2.0 - 1
    correlation = masks @ masks.T / n - np.eye(len(keys))
    assert np.abs(correlation).max() < 5 / math.sqrt(n)


def test_neighbouring_lanes_do_not_correlate():
    mask = keep_mask(np, Key(5, 6), (1 << 18,), 0.5) * 2.0 - 1
    for lag in (1, 2, 3, 4, 8, 64, 384):
        assert abs((mask[lag:] * mask[:-lag]).mean()) < 5 / math.sqrt(len(mask)), lag


def test_keys_are_values():
    assert step_key(1, 2) == step_key(1, 2)
    assert len({step_key(seed, step)[:2] for seed in (0, 1, 2**32, 2**63) for step in (0, 1, 2**32)}) == 12
    assert fold_in(None, 0, "x") is None
    assert fold_in(step_key(1, 2, row0=7), 0, "x").row0 == 7


def test_batches_are_a_function_of_the_global_row():
    """Two shards draw the windows of one batch, and windows reach the last character of the text."""
    ops, data = ReferenceOps(), np.arange(100)
    key = ops.step_key(1, 2)
    idx, targets = ops.get_batch(data, key, 6, 8)
    np.testing.assert_array_equal(targets, idx + 1)
    tail, _ = ops.get_batch(data, ops.step_key(1, 2, row0=4), 2, 8)
    np.testing.assert_array_equal(tail, idx[4:])
    starts = np.concatenate([ops.get_batch(data, ops.step_key(1, s), 64, 8)[0][:, 0] for s in range(60)])
    assert (starts.min(), starts.max()) == (0, 91)


def test_rows_are_the_words_of_their_counters():
    """Pinned, so that batches never change between versions."""
    for n in (3, SMALL_BATCH + 1):  # computed with integers, with arrays
        expected = [(hi << 32) | lo for hi, lo in (references.threefry(3, 4, row, 0) for row in range(5, 5 + n))]
        assert random_uint64(np, Key(3, 4, row0=5), n).tolist() == expected
    assert step_key(2**40 + 1, 2**33 + 5)[:2] == references.threefry(1, 256, 5, 2)
    assert fold_in(Key(3, 4), 2, "attention")[:2] == references.threefry(3, 4, 2, zlib.crc32(b"attention"))


def test_rows_beyond_32_bits_are_rows_of_their_own():
    for n in (3, SMALL_BATCH + 1):
        expected = [(hi << 32) | lo for hi, lo in (references.threefry(3, 4, row, 2) for row in range(5, 5 + n))]
        assert random_uint64(np, Key(3, 4, row0=2 * 2**32 + 5), n).tolist() == expected


@pytest.mark.parametrize("integer", [np.int32, np.uint32, np.int64, np.uint64])
def test_a_seed_may_be_an_integer_of_numpys(integer):
    key = step_key(integer(1337), integer(5))
    assert key == step_key(1337, 5)
    assert random_uint64(np, key, 2).tolist() == random_uint64(np, step_key(1337, 5), 2).tolist()


def test_rows_are_uniform():
    """Chi-squared over 64 cells is within 5 sigma."""
    counts = np.bincount((random_uint64(np, Key(1, 1), 1 << 16) >> np.uint64(58)).astype(int), minlength=64)
    chi2 = ((counts - 1024) ** 2 / 1024).sum()
    assert abs(chi2 - 63) < 5 * math.sqrt(2 * 63)
