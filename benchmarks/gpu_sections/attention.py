"""PyTorch's attention kernels at the model's shape, beside ours."""

from gpu_sections.report import Section
from gpu_sections.timing import us
from gpu_sections.workload import CONFIG, TRAIN


def sdpa(section: Section) -> None:
    """PyTorch's attention at the model's shape, for comparison with the kernels' rows."""
    import torch_baseline

    for dropout in (CONFIG.dropout, 0.0):
        with section.attempt(f"dropout {dropout}"):
            arguments = TRAIN.batch_size, CONFIG.n_head, CONFIG.block_size, CONFIG.head_size, dropout
            section.row(f"dropout {dropout}", **torch_baseline.attention_seconds(*arguments))


def show_sdpa(found: dict) -> str:
    lines = []
    for dropout, row in found["rows"].items():
        for kind, times in row.items():
            if isinstance(times, str):  # why it cannot be used
                result = times
            else:
                result = f"forward {us(times['forward']):7.1f} us, backward {us(times['backward']):7.1f} us"
            lines.append(f"  {dropout}, {kind.lower().removesuffix('_attention'):10} {result}")
    return "\n".join(["PyTorch's attention kernels, one layer:", *lines])


def short_attention(found: dict) -> str:
    """Ours beside the fastest of PyTorch's, microseconds a layer."""
    times = [t for t in found["sdpa"]["rows"][f"dropout {CONFIG.dropout}"].values() if isinstance(t, dict)]
    parts = []
    for way in ("forward", "backward"):
        kernels = [k for k in found["kernels"]["rows"]["bf16"]["kernels"] if k["kernel"].startswith(f"attention_{way}")]
        seconds, calls = (sum(k.get(what, 0) for k in kernels) for what in ("seconds", "calls"))
        calls = calls // 2 if way == "backward" else calls  # by query and by key
        parts.append(f"{way} {seconds / calls * 1e6:.0f} us (PyTorch {min(t[way] for t in times) * 1e6:.0f})")
    return ", ".join(parts)
