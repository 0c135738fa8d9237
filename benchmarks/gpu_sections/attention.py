"""PyTorch's attention kernels at the model's shape."""

from gpu_sections.machine import version
from gpu_sections.report import Section
from gpu_sections.timing import us
from gpu_sections.workload import CONFIG, TRAIN


def sdpa(section: Section) -> None:
    """Time PyTorch's attention, to compare with the rows of the section kernels."""
    if not version("torch"):
        section.fail("PyTorch", "not installed: pip install torch")
        return
    import torch_baseline

    for dropout in (CONFIG.dropout, 0.0):
        with section.attempt(f"dropout {dropout}"):
            arguments = TRAIN.batch_size, CONFIG.n_head, CONFIG.block_size, CONFIG.head_size, dropout
            section.row(f"dropout {dropout}", **torch_baseline.attention_seconds(*arguments, section.args.precision))


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
