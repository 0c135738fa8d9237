"""Bytes and seconds as a reader wants them."""


def human_bytes(n: float) -> str:
    """123456789 -> '118 MiB'."""
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} {unit}"
        n /= 1024
    return f"{n:.1f} GiB"


def human_seconds(seconds: float) -> str:
    """5025 -> '84 min', 6000 -> '1 h 40 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 72 else f"{hours / 24:.1f} days"
