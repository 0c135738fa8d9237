"""The fastest of several candidates: how it is chosen, and how the choice is stored."""

import json
import threading

import pytest

from tensorlite.cuda.runtime import autotune
from tensorlite.cuda.runtime.cublaslt import CublasError


class Clock:
    """A `time_call` for candidates that return their own seconds. It records the calls."""

    def __init__(self):
        self.timed = []

    def __call__(self, run):
        seconds = run()
        self.timed.append(seconds)
        return seconds


def taking(seconds):
    return lambda: seconds


def failing():
    raise CublasError("cublasLtMatmul: no", 15)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORLITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def silent(text):
    raise AssertionError(text)


def test_fastest():
    assert autotune.fastest({"a": taking(3.0), "b": taking(1.0), "c": taking(1.0)}, Clock()) == ("b", 1.0)
    uneven = iter([1.1, 2.0, 2.0])  # the smallest single time, but not the smallest median
    assert autotune.fastest({"uneven": lambda: next(uneven), "even": taking(1.5)}, Clock()) == ("even", 1.5)
    late = iter([1.0, 1.0])  # fails in its third round

    def fails_late():
        try:
            return next(late)
        except StopIteration:
            failing()

    assert autotune.fastest({"never": failing, "late": fails_late, "slow": taking(1.4)}, Clock()) == ("slow", 1.4)
    with pytest.raises(RuntimeError, match="none of 2 candidates runs: cublasLtMatmul: no"):
        autotune.fastest({"a": failing, "b": failing}, Clock())

    def mistake():
        raise TypeError("ours")

    with pytest.raises(TypeError, match="ours"):
        autotune.fastest({"a": mistake, "b": taking(1.0)}, Clock())


def test_a_candidate_that_is_too_slow_is_timed_once():
    clock, unlucky = Clock(), iter([1.4, 1.0, 1.0])
    found = autotune.fastest({"twice": taking(2.1), "near": taking(1.2), "unlucky": lambda: next(unlucky)}, clock)
    assert found == ("unlucky", 1.0)
    assert clock.timed == [2.1, 1.2, 1.4, 1.2, 1.0, 1.2, 1.0]
    clock = Clock()
    assert autotune.fastest({"nothing": taking(0.0), "something": taking(1.0)}, clock) == ("nothing", 0.0)
    assert clock.timed == [0.0, 1.0, 0.0, 0.0]


def test_the_first_that_runs():
    assert autotune.first_that_runs({"bad": failing, "a": taking(9.0), "b": taking(1.0)}) == "a"
    with pytest.raises(RuntimeError, match="none of 1 candidates runs: cublasLtMatmul: no"):
        autotune.first_that_runs({"bad": failing})


def test_a_choice_is_remembered(folder):
    machine = "NVIDIA H200, driver 580.65.06, cuBLASLt 131000"
    first = autotune.AutotuneCache(machine, silent)
    clock = Clock()
    assert first.pick("p", {"a": taking(2e-6), "unfused": taking(1.5e-6)}, clock) == "unfused"
    assert len(clock.timed) == 6
    assert first.path == folder / "choices-nvidia-h200-driver-580.65.06-cublaslt-131000.json"
    entry = {"algo": "unfused", "microseconds": 1.5, "note": "of 2 candidates"}
    assert json.loads(first.path.read_text()) == {"p": entry}
    assert {path.name for path in folder.iterdir()} <= {first.path.name, first.path.with_suffix(".lock").name}

    ran = []
    candidates = {"a": taking(1e-6), "unfused": lambda: ran.append(1)}  # "a" would be the fastest now
    assert autotune.AutotuneCache(machine, silent).pick("p", candidates, None) == "unfused"
    assert ran == [1]  # once, to load its kernel
    # The stored "unfused" is no candidate any more; then the stored "b" does not run any more.
    assert autotune.AutotuneCache(machine, silent).pick("p", {"a": taking(2.0), "b": taking(1.0)}, Clock()) == "b"
    assert autotune.AutotuneCache(machine, silent).pick("p", {"a": taking(2.0), "b": failing}, Clock()) == "a"
    assert autotune.AutotuneCache("another", silent).pick("p", {"a": taking(2.0), "c": taking(1.0)}, Clock()) == "c"


def test_two_processes_keep_each_others_choices(folder):
    one, two = autotune.AutotuneCache("m", silent), autotune.AutotuneCache("m", silent)
    one.pick("p", {"a": taking(1.0)}, Clock())
    two.pick("q", {"b": taking(1.0)}, Clock())
    assert set(json.loads(one.path.read_text())) == {"p", "q"}


def test_processes_that_choose_at_once_choose_the_same(folder):
    """Of two ranks, one times the candidates. The other waits and uses its choice, though it would have chosen another."""
    pytest.importorskip("fcntl")
    one, two = autotune.AutotuneCache("m", silent), autotune.AutotuneCache("m", silent)
    timing, second = threading.Event(), []

    def other():
        timing.wait()
        second.append(two.pick("p", {"a": taking(1.0), "b": taking(2.0)}, lambda run: pytest.fail("it was timed again")))

    def slow(run):
        timing.set()
        thread.join(0.02)
        return run()

    thread = threading.Thread(target=other)
    thread.start()
    assert one.pick("p", {"a": taking(2.0), "b": taking(1.0)}, slow) == "b"
    thread.join(10)
    assert second == ["b"]


def test_a_candidate_may_make_choices_of_its_own(folder):
    """Unfused kernels do this: their plain GEMM is autotuned, too."""
    cache = autotune.AutotuneCache("m", silent)

    def unfused():
        assert cache.pick("plain", {"x": taking(1.0)}, Clock()) == "x"
        return 2.0

    assert cache.pick("p", {"fused": taking(3.0), "unfused": unfused}, Clock()) == "unfused"
    assert set(json.loads(cache.path.read_text())) == {"p", "plain"}


@pytest.mark.parametrize(
    "damage",
    [b"[" * 100_000, b"{", b"\xff\xfe", b"[]", b"7", b"null", b'{"p": 7}', b'{"p": {"algo": 7}}', b'{"p": {}}'],
    ids=range(9),
)
def test_a_damaged_file(folder, damage):
    said = []
    folder.mkdir()
    (folder / "choices-m.json").write_bytes(damage)
    cache = autotune.AutotuneCache("m", said.append)
    assert cache.pick("p", {"a": taking(1.0)}, Clock()) == "a"
    assert cache.pick("q", {"b": taking(1.0)}, Clock()) == "b"
    assert len(said) == 1
    assert "cannot be read" in said[0]
    assert set(json.loads(cache.path.read_text())) == {"p", "q"}


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """A file is in the place of the folder, which also stops root."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TENSORLITE_CACHE", str(tmp_path / "file" / "cache"))
    said = []
    cache = autotune.AutotuneCache("m", said.append)
    for key in ("p", "q", "r"):
        assert cache.pick(key, {"b": taking(2.0), "a": taking(1.0)}, Clock()) == "a"
    assert len([text for text in said if "cannot be written" in text]) == 1
    assert cache.pick("p", {"b": taking(1.0), "a": taking(1.0)}, None) == "a"  # the choice holds within the run
