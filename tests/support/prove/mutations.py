"""A mutated checkpoint file is refused or has the original's values.

If its hash was made right again, it may also be a valid checkpoint.

Half of the cases change bytes, half take the header apart and put hostile values in, most of these with the right hash.
"""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from gpt.errors import CheckpointError
from gpt.params import ParamTable
from gpt.tokenizer import CharTokenizer
from gpt.training import checkpoint
from gpt.training.checkpoint import BUFFERS, Checkpoint
from prove.harness import draw, main, scratch
from prove.subject import equal, file_of, join, split

CLEAR_SCREEN = "\x1b[2J\nall is well"
HOSTILE: list[Any] = [
    *(0, 1, 2, -1, 2**31, 2**53 + 1, 2**63, 2**64, 10**50, -(2**63), 10**400, 0.5, 1e308, -0.0, float("inf"), float("nan")),
    *(
        True,
        False,
        None,
        "",
        "gpt",
        "bigram",
        "tensorlite-checkpoint-2",
        "F32",
        "F64",
        "BF16",
        "\ud800",
        "\0",
        "abc",
        "aab",
        CLEAR_SCREEN,
        "é" * 999,
    ),
    *([], {}, [0, 2**63], [2**32, 2**32], [[]] * 9, {"a": {}}, [0, 36], [36, 72], [3, 3], [9]),
]
LENGTHS = [0, 1, 7, 8, 2**20, 2**26, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1]


def flip(data: bytes, random: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 2, 3, 8))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def splice(data: bytes, random: random.Random) -> bytes:
    """Overwrite, delete, insert, repeat or move a stretch."""
    a, b, c = sorted(random.randrange(len(data) + 1) for _ in range(3))
    new = random.randbytes(random.randrange(64))
    return random.choice(
        (
            data[:a] + new + data[a + len(new) :],
            data[:a] + data[b:],
            data[:a] + new + data[a:],
            data[:b] + data[a:b] + data[b:],
            data[:a] + data[b:c] + data[a:b] + data[c:],
            data[:a] + bytes(b - a) + data[b:],
            data + new,
        )
    )


def tear(data: bytes, random: random.Random) -> bytes:
    """A file of one step, from somewhere in its numbers on another step's."""
    other = file_of("gpt" if len(data) == len(file_of("gpt")[1]) else "bigram", 6)[1]
    at = random.randrange(len(data) - len(split(data)[1]), len(data) - 4)
    return data[:at] + other[at:]


def lie_about_the_header(data: bytes, random: random.Random) -> bytes:
    return random.choice(LENGTHS).to_bytes(8, "little") + data[8:]


def places(node: Any, path: tuple = ()) -> list[tuple]:
    """The path of everything within a JSON object."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [found for key, child in items for found in ((*path, key), *places(child, (*path, key)))]


def change(tree: Any, random: random.Random) -> None:
    """Replace, remove, rename or copy one value somewhere in a JSON object."""
    found = places(tree)
    if not found:
        return
    *path, key = random.choice(found)
    for step in path:
        tree = tree[step]
    action = random.randrange(6)
    if action == 0:
        del tree[key]
    elif action == 1 and isinstance(tree, dict):
        tree[random.choice(("x", "about", "sha256", "version", str(key) + "x", "params/wte", "v/blocks.9.fc_w"))] = tree[key]
    elif action == 2 and isinstance(tree, dict):
        tree[random.choice(("y", "format", "__metadata__", "params/head_w", "n_layer", CLEAR_SCREEN))] = tree.pop(key)
    else:
        tree[key] = copy.deepcopy(random.choice(HOSTILE))


def change_header(data: bytes, random: random.Random) -> bytes:
    header, tensors = split(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        change(header, random)
    return join(header, tensors)


def change_description(data: bytes, random: random.Random) -> bytes:
    """Another configuration under the right hash, as an attacker would write it."""
    header, tensors = split(data)
    about = json.loads(header["__metadata__"]["about"])
    for _ in range(random.choice((1, 1, 2, 3))):
        change(about, random)
    text = json.dumps(about)
    if random.random() < 0.2:
        text = mangle(text, random)
    return rehash(header, tensors, text)


def enlarge(data: bytes, random: random.Random) -> bytes:
    """A model too large for its file and perhaps for any machine, under the right hash."""
    header, tensors = split(data)
    about = json.loads(header["__metadata__"]["about"])
    about["model"][random.choice(("vocab_size", "block_size", "n_layer", "n_head", "n_embd"))] = int(10 ** random.uniform(0, 30))
    return rehash(header, tensors, json.dumps(about))


def change_description_alone(data: bytes, random: random.Random) -> bytes:
    """Another configuration under the old hash."""
    header, tensors = split(change_description(data, random))
    header["__metadata__"]["sha256"] = split(data)[0]["__metadata__"]["sha256"]
    return join(header, tensors)


def mangle(text: str, random: random.Random) -> str:
    """JSON that no program writes: deep, repeated, endless, cut short."""
    field = random.choice(('"seed"', '"n_layer"', '"learning_rate"', '"model"'))
    value = random.choice(
        ("[" * 150 + "]" * 150, "[" * 10**5, '{"a":' * 150, "9" * 5000, "-NaN", "1e99999", '"\\ud800"', "[0" + ",0" * 9999 + "]")
    )
    return random.choice(
        (
            text.replace(field + ": ", field + ": " + value + ", " + field + ": "),
            text[: random.randrange(len(text))],
            value,
            text + value,
        )
    )


def rehash(header: dict, tensors: bytes, about: str) -> bytes:
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    arrays = {
        name: np.frombuffer(tensors[slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
        for name, entry in entries.items()
    }
    try:
        digest = checkpoint._hash(arrays, about)
    except UnicodeEncodeError:  # a surrogate: there is no right hash
        digest = ""
    return join(header | {"__metadata__": {"format": checkpoint.FORMAT, "about": about, "sha256": digest}}, tensors)


BYTES: list[Callable] = [flip, splice, splice, tear, lie_about_the_header]
HEADERS: list[Callable] = [change_header, change_description, change_description, enlarge, change_description_alone]


def case(n: int) -> str:
    numbers = draw("mutation", n)
    original, data = file_of(numbers.choice(("bigram", "gpt")))
    mutate = numbers.choice(BYTES if n % 2 else HEADERS)
    path = scratch() / "mutated.safetensors"
    path.write_bytes(mutate(data, numbers))
    try:
        loaded = checkpoint.load(path)
    except CheckpointError as error:
        if len(str(error).splitlines()) != 1:
            raise AssertionError(f"not one line: {error}") from error
        return "CheckpointError"
    if equal(loaded, original):
        return "equal to the original"
    assert mutate in (change_description, enlarge), f"{mutate.__name__} went unnoticed"
    assert_valid(loaded)
    return "valid, as its hash is"


def assert_valid(loaded: Checkpoint) -> None:
    """A stranger's checkpoint is one that a run could have saved, and comes back equal."""
    assert len(CharTokenizer(loaded.vocabulary)) == loaded.model.vocab_size
    assert 0 <= loaded.step <= loaded.train.max_iters
    assert 0 <= loaded.seed < 2**63
    assert f"{loaded.val_loss:.4f} {loaded.best_val:.4f}"
    assert {type(loaded.drop_unknown), type(loaded.data_sha256)} == {bool, str}
    assert all(getattr(loaded, name).shape == (ParamTable(loaded.table.params).size,) for name in BUFFERS)
    path = scratch() / "again.safetensors"
    checkpoint.save(path, loaded)
    again = checkpoint.load(path)
    assert repr(again.model) == repr(loaded.model)
    assert repr(again.train) == repr(loaded.train)
    assert all((getattr(again, name) == getattr(loaded, name)).all() for name in BUFFERS)


if __name__ == "__main__":
    main(case, 1_000_000, chunk=1000)
