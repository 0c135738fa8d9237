"""On a real GPU: train.py and sample.py, each in a process of its own."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from gpt.training import checkpoint
from on_gpu import require
from paths import ROOT
from small import PANGRAMS

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # CuPy's own warnings do not fail a test


@pytest.fixture(scope="module")
def folder(gpu, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "text").write_text(PANGRAMS * 5)
    return folder


def run(folder, command):
    """Run a command line in a process of its own."""
    script, *rest = command.split()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *rest], cwd=folder, capture_output=True, text=True, env=environment, timeout=300
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


def test_the_full_model_from_the_command_line(folder, gpu):
    """Two runs, each in a process of its own, are bitwise identical. Then the checkpoint generates text."""
    said = []
    for name in ("one", "two"):
        done = run(folder, f"train.py --preset shakespeare --max-iters 20 --eval-batches 1 --data text --out {name}")
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"backend  fast: kernels in {gpu.precision}" in done.stdout
        said.append(re.findall(r"^step .*", done.stdout, re.MULTILINE))
    assert said[0] == said[1]
    assert [line.split(":")[0] for line in said[0]] == ["step 0", "step 20"]
    one, two = (checkpoint.load(folder / name / "last.safetensors") for name in ("one", "two"))
    for buffer in checkpoint.BUFFERS:
        np.testing.assert_array_equal(getattr(one, buffer), getattr(two, buffer))
    done = run(folder, "sample.py --checkpoint one --max-new-tokens 60")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 60


@pytest.mark.parametrize("flags", ["--backend reference --max-iters 3", "--shards 2 --max-iters 3", "--precision tf32 --profile"])
def test_other_ways_to_run_it(flags, folder, gpu):
    if "tf32" in flags:
        require(gpu, "tf32")
    done = run(folder, f"train.py --preset shakespeare --eval-batches 1 --data text --out other --device cuda {flags}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("adamw_" if "profile" in flags else "done: step 3 |") in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--batch-size 10000000", "lower --batch-size and raise --gradient-accumulation-steps"),
        ("--threads 2", "threads must be 1 on a GPU"),
    ],
)
def test_what_a_gpu_refuses_it_says_in_a_line(flags, words, folder):
    done = run(folder, f"train.py --preset shakespeare --data text --out refused --device cuda {flags}")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
