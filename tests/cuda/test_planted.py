"""Mistakes planted in the CUDA kernels: a check of cuda_op_checks.py or cuda_step_checks.py must notice each of them."""

import functools
import re

import pytest

from cuda_machines import SM75, Both, both
from cuda_op_checks import (
    attention,
    convert,
    cross_entropy_alone,
    dropout,
    dropout_add_layernorm,
    gelu,
    layernorm_alone,
    linear_cross_entropy,
    position_embedding,
    relu,
    residual,
    sums_of_a_step,
    token_position_embedding,
)
from cuda_step_checks import (
    adamw,
    batch,
    clipped,
    cosine_lr,
    end_of_step,
    loss_scale_rule,
    pack_grads,
    skipped_update,
    squares_of_a_step,
    threshold,
    unscaled_gradients,
)
from shim.host import KERNELS, KernelError
from tensorlite import Key

MMA, SCALAR, TILES, MASK, PTX = "attention_mma.cu", "attention.cu", "attention_tiles.cuh", "attention_mask.cuh", "ptx.cuh"
BARRIER = "__syncthreads();"
ARRIVED = "        copy_async_wait();\n        __syncthreads();"
tiles = functools.partial(attention, B=1, T=76, H=1)  # two of the tensor cores' tiles, the second with 12 of 64 rows
masked = functools.partial(attention, B=1, T=76, p=0.3)  # and two heads, with three earlier rows of the batch
rows = functools.partial(attention, B=1, T=40, H=1)  # two tiles of the scalar kernels, five blocks
masked_rows = functools.partial(attention, B=1, T=40, p=0.3)
# A file, a text that it contains once, the text that replaces it, the precision, and the check that must notice.
PLANTED = [
    # a missing barrier
    (MMA, "__syncthreads();\n        float p[TILE / 8][4];\n", "float p[TILE / 8][4];\n", "bf16", tiles),
    (MMA, "__syncthreads();  // before the next tile overwrites k and v", "", "bf16", tiles),
    (MMA, "__syncthreads();\n    Rows q_rows", "Rows q_rows", "bf16", functools.partial(tiles, D=64)),
    (MMA, "TILE / 2;\n" + ARRIVED, "TILE / 2;\n        copy_async_wait();", "bf16", tiles),
    (MMA, "// 4. dq\n        }\n        __syncthreads();", "}", "bf16", tiles),
    (MMA, "__syncthreads();\n    Rows k_rows", "Rows k_rows", "bf16", functools.partial(tiles, D=64)),
    (MMA, "(words);\n        }\n" + ARRIVED, "(words);\n        }\n        copy_async_wait();", "bf16", tiles),
    (MMA, "// 4. dk\n        }\n        __syncthreads();", "}", "bf16", tiles),
    (SCALAR, "__syncthreads();\n        load_tile(k_tile, k_base", "load_tile(k_tile, k_base", "float32", rows),
    (SCALAR, "v_base, kv_strides.row, kv0, end);\n        __syncthreads();", "v_base, kv_strides.row, kv0, end);", "float32", rows),
    (SCALAR, "__syncthreads();\n        load_tile(k_tile, q_base + C", "load_tile(k_tile, q_base + C", "float32", rows),
    (SCALAR, "2 * C, 3 * C, kv0, end);\n        __syncthreads();", "2 * C, 3 * C, kv0, end);", "float32", rows),
    (SCALAR, "__syncthreads();\n        load_tile(q_tile", "load_tile(q_tile", "float32", rows),
    (SCALAR, "C, q0, T);\n        __syncthreads();", "C, q0, T);", "float32", rows),
    ("layernorm.cu", "}\n        __syncthreads();", "}", "float32", layernorm_alone),
    ("layernorm.cu", "so_far[c];\n    __syncthreads();", "so_far[c];", "float32", layernorm_alone),
    ("reduce.cu", BARRIER, "", "float32", position_embedding),
    ("common.cuh", BARRIER, "", "float32", clipped),
    ("random.cuh", BARRIER, "", "float32", dropout),
    ("embedding.cu", BARRIER, "", "float32", batch),
    ("optim.cu", BARRIER, "", "float32", adamw),
    # wrong positions of matrix elements
    (TILES, "lane % 16 * PITCH + d + lane / 16 * 8", "lane % 16 * PITCH + d + lane / 8 % 2 * 8", "bf16", tiles),
    (TILES, "d + lane / 8 % 2 * 8", "d + lane / 16 * 8", "bf16", tiles),
    (TILES, "tile_row<ORDER>(lane % 16)", "tile_row<ORDER>(lane % 8)", "bf16", tiles),
    (TILES, "tile_row<ORDER>(lane % 16)", "lane % 16", "bf16", tiles),
    (TILES, "PITCH = D + 8", "PITCH = D + 4", "bf16", tiles),
    (TILES, "if (r + 8 < valid_rows)", "if (r + 7 < valid_rows)", "bf16", tiles),
    (TILES, "(r + 8) * row_stride + 8 * j", "(r + 7) * row_stride + 8 * j", "bf16", tiles),
    (SCALAR, "PITCH = D + 1", "PITCH = D + 2", "float32", rows),
    # wrong masking or use of the scores
    (MMA, "fragment_key(j, i) > warp_row", "fragment_key(j, i) >= warp_row", "bf16", tiles),
    (MMA, "if (kv_tile == q_tile)  //", "if (kv_tile < q_tile)  //", "bf16", tiles),
    (MMA, "float p = column <= row + 8 * r", "float p = column <= row + 1 + 8 * r", "bf16", tiles),
    (MMA, "> q0 + query", ">= q0 + query", "bf16", tiles),
    (MMA, "kv_tile * TILE + warp_row) continue", "kv_tile * TILE + warp_row + 16) continue", "bf16", tiles),
    (MMA, "q_tile * TILE + warp_row + 16) break", "q_tile * TILE + warp_row) break", "bf16", tiles),
    (MMA, "min(T, (q_tile + 1) * TILE)", "min(T, q_tile * TILE)", "bf16", tiles),
    (MMA, "p[j][i] = fast_exp2(p[j][i] * scale_log2 - m[", "p[j][i] = fast_exp2(p[j][i] * LOG2_E - m[", "bf16", tiles),
    (MMA, "alpha[r] = fast_exp2(m[r] - m_new)", "alpha[r] = 1.0f", "bf16", functools.partial(attention, B=1, T=128, H=1)),
    (MMA, "acc[j][i] *= alpha[i / 2]", "acc[j][i] *= alpha[i / 3]", "bf16", functools.partial(attention, B=1, T=128, H=1)),
    (MMA, "= (m[r] + log2f", "= (m[0] + log2f", "bf16", tiles),
    (MMA, " - delta_shared[query]);", ");", "bf16", tiles),
    (MMA, "int t = row + 8 * r;", "int t = row + 7 * r;", "bf16", tiles),
    (SCALAR, "l = l * alpha + warp_sum(p)", "l = l + warp_sum(p)", "float32", rows),
    (SCALAR, "ds = p * (dp - delta_t)", "ds = p * dp", "float32", rows),
    (SCALAR, "if (s <= t && t < T)", "if (s < t && t < T)", "float32", rows),
    # dropout
    (MMA, "inv_keep / l[0], inv_keep / l[1]", "1.0f / l[0], 1.0f / l[1]", "bf16", masked),
    (MMA, "dv, inv_keep, inv_keep);", "dv, 1.0f, 1.0f);", "bf16", masked),
    (MMA, "row) * T + kv_tile * TILE;\n            int col", "row) * T;\n            int col", "bf16", masked),
    (MMA, "TILE : warp_row + 16;", "TILE : warp_row;", "bf16", masked),
    (TILES, "4 * g + threadIdx.x % 4", "4 * g + threadIdx.x % 2", "bf16", masked),
    (TILES, "counter + 2 * T) << 4", "counter + T) << 4", "bf16", masked),
    (TILES, "(piece ^ t / 2)", "piece", "bf16", masked),
    (TILES, "threadIdx.x % 4 < 2 ?", "threadIdx.x % 4 < 3 ?", "bf16", masked),
    (TILES, "(r + i / 2 * 8) / 4", "r / 4", "bf16", masked),
    (TILES, "word >> (8 * w + r % 4)", "word >> (8 * w + r / 4)", "bf16", masked),
    (TILES, "& 0x11) << (4 * j + i)", "& 0x11) << (4 * j + i / 2)", "bf16", masked),
    (TILES, "i / 2 * 4 + j % 2 * 2 + i % 2; }", "j % 2 * 4 + i / 2 * 2 + i % 2; }", "bf16", masked),
    (MMA, "T, q_tile * TILE, kv_tile * TILE) + threadIdx.x] = ", "T, q_tile * TILE, 0) + threadIdx.x] = ", "bf16", masked),
    (MMA, "mask ? mask[mask_tile(blockIdx.x, T, q_tile * TILE, k0) + threadIdx.x] : ~0u", "~0u", "bf16", masked),
    (MMA, "(drawn) >> k0 % TILE / 2", "(drawn)", "bf16", masked),
    (MMA, "bit = step / 2 + fragment_bit(j, i)", "bit = fragment_bit(j, i)", "bf16", masked),
    (MMA, "bit = step / 2 + 4 * j + i", "bit = 4 * j + i", "bf16", masked),
    (MMA, "T, q0, kv_tile * TILE) + q0 % TILE / 16 * 32", "T, q0, kv_tile * TILE)", "bf16", masked),
    (MMA, "T, q0, kv_tile * TILE) + q0", "T, q0, q0) + q0", "bf16", masked),
    (MMA, "p[j][i] = apply_mask(p[j][i], mask_bits, bit, 1.0f);", "", "bf16", masked),
    (MASK, "(head * (q_tiles", "(0 * (q_tiles", "bf16", masked),
    (MASK, "+ q_tile * (q_tile + 1) / 2 +", "+ q_tile * (q_tile + 1) +", "bf16", masked),
    (SCALAR, "mask[mask_word(T, t, kv0)]", "mask[mask_word(T, t, 0)]", "float32", masked_rows),
    (SCALAR, "(MASK_TILE / 32) + s % MASK_TILE / 32", "(MASK_TILE / 32)", "float32", masked_rows),
    (SCALAR, ">> s % 32 & 1;\n            p_dropped", ">> lane & 1;\n            p_dropped", "float32", masked_rows),
    (SCALAR, "p_dropped = keep ? p * inv_keep : 0.0f;", "p_dropped = p;", "float32", masked_rows),
    (SCALAR, "dropout.offset + ((long long)blockIdx.x * T + t) * S", "((long long)blockIdx.x * T + t) * S", "float32", masked_rows),
    ("random.cuh", "17, 29, 16, 24}", "17, 29, 24, 16}", "float32", dropout),
    ("random.cuh", "(x.y << 16 >= threshold)", "(x.y << 16 > threshold)", "float32", functools.partial(threshold, element=2)),
    ("random.cuh", "counter, (unsigned)(counter >> 32)", "counter, 0u", "float32",
     functools.partial(dropout, shape=(1, 64), key=Key(1, 2, 2**29))),
    ("random.cuh", "element / 4) >> (element % 4)", "element / 4) >> (element % 2)", "float32", dropout),
    ("random.cuh", "(unsigned)*key.step, (unsigned)(*key.step >> 32)", "(unsigned)*key.step, 0u", "float32",
     functools.partial(batch, counted=2**33 + 1)),
    ("random.cuh", "key.layer, key.site)", "key.site, key.layer)", "float32", functools.partial(batch, counted=1)),
    ("dropout.cu", "dropout.offset + chunk.i", "chunk.i", "float32", dropout),
    ("dropout.cu", "x[j] * dropout.inv_keep", "x[j]", "float32", dropout),
    ("layernorm.cu", "key, dropout.offset + n * C);\n            for", "key, n * C);\n            for", "float32",
     functools.partial(dropout_add_layernorm, p=0.3)),
    ("layernorm.cu", "if (dropout.threshold) apply_dropout(g, dropout, key, dropout.offset + n * C);", "", "float32",
     functools.partial(dropout_add_layernorm, p=0.3)),
    # fp16 on compute capability 7.5
    (PTX, "(c, a + 2, b[1])", "(c, a + 2, b[0])", SM75, tiles),
    (PTX, "exists ? *(const uint4*)from_global", "exists ? make_uint4(*(unsigned*)from_global, 0, 0, 0)", SM75, tiles),
    (PTX, ": make_uint4(0, 0, 0, 0)", ": make_uint4(~0u, 0, 0, 0)", SM75, tiles),
    (PTX, "round_fp16(low) | (unsigned)round_fp16(high)", "round_fp16(high) | (unsigned)round_fp16(low)", SM75, residual),
    # a few others
    ("layernorm.cu", "if (channel(i) < C) row", "row", "float32", layernorm_alone),
    ("layernorm.cu", "+ (warp ? so_far[c] : 0.0f)", "", "float32", layernorm_alone),
    ("layernorm.cu", "round_to_storage(s, row.x[i] + branch.x[i])", "row.x[i] + branch.x[i]", "bf16", dropout_add_layernorm),
    ("layernorm.cu", "dskip.x[i] + rstd_n", "rstd_n", "float32", dropout_add_layernorm),
    ("layernorm.cu", "skip ? load_row(skip + n * C) : Row{}", "load_row(dh + n * C)", "float32",
     functools.partial(dropout_add_layernorm, ds=False)),
    ("layernorm.cu", "sum_warps(branch_sum, ", "sum_warps(db, ", "float32", sums_of_a_step),
    ("layernorm.cu", "+= round_to_storage(dx, g.x[i])", "+= g.x[i]", "bf16", sums_of_a_step),
    ("reduce.cu", "min(rows, begin + rows_each)", "min(rows, begin + 2 * rows_each)", "float32",
     functools.partial(position_embedding, rows=(1100,))),
    ("reduce.cu", "int i = blockIdx.y;", "int i = 0;", "float32", sums_of_a_step),
    ("reduce.cu", "sums.rows[i], sums.K[i]", "sums.rows[i] - 1, sums.K[i]", "float32", sums_of_a_step),
    ("reduce.cu", "if (row > 0 || k >= K) return;", "if (row > 0) return;", "float32", sums_of_a_step),
    ("reduce.cu", "+ column) * VEC;", "+ column) * 4;", "float32", functools.partial(position_embedding, T=1, C=33)),
    ("common.cuh", "i = 16; i > 0; i /= 2) x +=", "i = 8; i > 0; i /= 2) x +=", "float32", clipped),
    ("common.cuh", "i + 4 <= n", "i + 3 <= n", "float32", functools.partial(gelu, shape=(1023,))),
    ("common.cuh", "n / 4 * 4 + thread < n", "n / 4 * 4 + thread <= n", "float32", gelu),
    ("activations.cu", "v[j] > 0.0f ? d[j]", "v[j] >= 0.0f ? d[j]", "float32", relu),
    ("optim.cu", "Vec4 y = chunk.load(to);", "Vec4 y = chunk.load(from);", "float32", pack_grads),
    ("optim.cu", "sum += x[j] * x[j];", "sum += chunk.load(from)[j] * chunk.load(from)[j];", "float32", squares_of_a_step),
    ("optim.cu", "partial[blockIdx.y * gridDim.x + blockIdx.x]", "partial[blockIdx.x]", "float32", squares_of_a_step),
    ("optim.cu", "sum = block_sum(sum);\n    if (threadIdx.x == 0) partial[blockIdx.y", "if (threadIdx.x == 0) partial[blockIdx.y",
     "float32", squares_of_a_step),
    ("cross_entropy.cu", ": 1.0f) / rows;", ": 1.0f);", "float32", cross_entropy_alone),
    ("cross_entropy.cu", "v < stride", "v < V", "float32", linear_cross_entropy),
    ("layout.cu", "i % y_width - at", "i % y_width", "bf16", functools.partial(position_embedding, start=2)),
    ("layout.cu", "y_width * x_width + column", "y_width * y_width + column", "bf16", linear_cross_entropy),
    ("embedding.cu", "wpe_rows + t * C", "wpe_rows + n * C", "float32", token_position_embedding),
    ("embedding.cu", "if (t >= T) return;", "", "float32", functools.partial(token_position_embedding, T=9)),
    ("embedding.cu", "columns % 4 == 0 ? 4 : 1", "4", "float32", functools.partial(token_position_embedding, C=33)),
    ("embedding.cu", "chunk.i + j == id", "chunk.i == id", "float32", token_position_embedding),
    ("embedding.cu", "row0 + blockIdx.x", "blockIdx.x", "float32", batch),
    ("optim.cu", "chunk.i + j < n_decay", "chunk.i < n_decay", "float32", adamw),
    ("optim.cu", "(float)(hyper.eps * root_c2)", "(float)hyper.eps", "float32", adamw),
    ("optim.cu", "(*hyper.step + 1) / (hyper.warmup", "*hyper.step / (hyper.warmup", "float32",
     lambda both: cosine_lr(both, 0.02, 0.003, 4, 7)),
    ("optim.cu", "loss_ring[2 * slot + 1]", "loss_ring[2 * slot]", "float32", end_of_step),
    # loss scaling
    ("optim.cu", "isfinite(*norm) ? 0.0f : 1.0f", "*norm == INFINITE ? 1.0f : 0.0f", "float32", loss_scale_rule),
    ("optim.cu", "s.scale = fmaxf(1.0f, s.scale / 2.0f);", "", "float32", loss_scale_rule),
    ("optim.cu", "fmaxf(1.0f, s.scale / 2.0f)", "s.scale / 2.0f", "float32", loss_scale_rule),
    ("optim.cu", "fminf(max_scale, s.scale * 2.0f)", "s.scale * 2.0f", "float32", loss_scale_rule),
    ("optim.cu", "s.finite_steps = 0.0f;\n        s.skipped", "s.skipped", "float32", loss_scale_rule),
    ("optim.cu", "s.finite_steps = 0.0f;\n    }\n    *loss_scale", "}\n    *loss_scale", "float32", loss_scale_rule),
    ("optim.cu", "++s.finite_steps ==", "s.finite_steps++ ==", "float32", loss_scale_rule),
    ("optim.cu", "s.skipped_steps += 1.0f;", "", "float32", loss_scale_rule),
    ("optim.cu", "x[j] *= unscale;", "x[j] *= add ? 1.0f : unscale;", "float32", unscaled_gradients),
    ("optim.cu", "x[j] *= unscale;", "x[j] = isfinite(x[j]) ? x[j] * unscale : 0.0f;", "float32", unscaled_gradients),
    ("optim.cu", "if (loss_scale && loss_scale->overflow) return;", "", "float32", skipped_update),
    ("optim.cu", "(loss_scale && loss_scale->overflow) return;", "(loss_scale && loss_scale->overflow) n = n_decay;", "float32",
     skipped_update),
    ("optim.cu", " - (loss_scale ? loss_scale->skipped_steps : 0.0f)", "", "float32", skipped_update),
]  # fmt: skip


def planted_name(planted):
    file, old, new = (re.sub(r"\s+", " ", text) for text in planted[:3])
    return f"{file}: {old[:50]} -> {new[:50] or 'nothing'}"


LONG = [  # fp16 on compute capability 7.5, whose copies to shared memory are plain ones
    *(planted[:3] + (SM75,) + planted[4:] for planted in PLANTED[:6]),  # the barriers
    (PTX, "(c, a, b[0]);", "(c, a + 1, b[0]);", SM75, tiles),
    (PTX, "    mma_16x8x8_fp16(c, a + 2, b[1]);\n", "", SM75, tiles),
    ("common.cuh", "widen_fp16((unsigned short)(pair >> 16))", "widen_fp16((unsigned short)pair)", SM75, residual),
    ("common.cuh", "{ return pack_fp16(low, high); }", "{ return pack_fp16(low, low); }", SM75, residual),
    ("common.cuh", "{ return pack_fp16(low, high); }", "{ return pack_bf16(low, high); }", "fp16", residual),
    ("convert.cu", "chunk.load(x)", "chunk.load(y)", SM75, convert),
]


@pytest.mark.parametrize("planted", [*PLANTED, *(pytest.param(p, marks=pytest.mark.long) for p in LONG)], ids=planted_name)
def test_a_planted_mistake_is_noticed(planted):
    file, old, new, precision, function = planted
    source = (KERNELS / file).read_text()
    assert source.count(old) == 1, f"{file} has {old!r} {source.count(old)} times"
    edited = Both(precision, edits={file: [(old, new)]})
    with pytest.raises((AssertionError, KernelError)) as caught:
        function(edited)
    assert "does not compile" not in str(caught.value)
    unharmed(function, precision)


@functools.cache
def unharmed(function, precision):
    """Assert that the check passes with the unchanged kernels."""
    function(both(precision))
