"""Integer division that rounds up: how many blocks, tiles or batches cover a length."""


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def round_up(a: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below a."""
    return ceil_div(a, multiple) * multiple
