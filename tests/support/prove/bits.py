"""Every truncation and every single-bit flip of a small checkpoint is a CheckpointError.

Case n below the file's length cuts it to n bytes; each later case flips one bit.
"""

from gpt.errors import CheckpointError
from gpt.training import checkpoint
from prove.harness import main, scratch
from prove.subject import file_of


def cases() -> int:
    """How many there are: a cut at each length and eight bits a byte."""
    return 9 * len(file_of("bigram")[1])


def case(n: int) -> str:
    _, good = file_of("bigram")
    if n < len(good):
        data, what = good[:n], "truncated: CheckpointError"
    else:
        at, bit = divmod(n - len(good), 8)
        data, what = good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :], "bit flipped: CheckpointError"
    path = scratch() / "damaged.safetensors"
    path.write_bytes(data)
    try:
        checkpoint.load(path)
    except CheckpointError:
        return what
    raise AssertionError("a damaged file was loaded")


if __name__ == "__main__":
    main(case, cases(), chunk=1000)
