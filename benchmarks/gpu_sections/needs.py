"""The packages and files that benchmarks/gpu.py needs, and how to carry them to another machine.

This file imports the standard library alone, because it runs where packages are missing.
"""

import importlib.metadata
import importlib.util
import platform
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
IMPORT_NAMES = {"cupy-cuda12x": "cupy", "cupy-cuda13x": "cupy", "pytest-xdist": "xdist"}  # where pip has another name
OPTIONAL = {"the comparison with PyTorch": ["torch"], "the counted times": ["nvidia-cuda-nvdisasm"]}
CORPUS = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"  # as in gpt/data.py
OLDEST_GLIBC = 17  # 2.17, the oldest that wheels for Linux are built for
DEFAULT_CUDA = 12  # its libraries also work with a driver of CUDA 13
CHILDREN = {"--section", "--serve", "--check", "--first-steps"}  # flags with which the script calls itself: it has checked by then


def required() -> list[str]:
    """Return the requirements of all sections: those of the project, and CuPy for the CUDA version of the driver."""
    project = _project()
    cuda = project["optional-dependencies"][f"cuda{driver_cuda()}x"]
    needs = [*project["dependencies"], *cuda]
    return [need for need in needs if "nccl" not in need and "darwin" not in need]  # NCCL is for several GPUs, and no Mac has one


def for_tests() -> list[str]:
    """Return the further requirements of the section tests."""
    extras = _project()["optional-dependencies"]
    return [*extras["check"], *(need for need in extras["test"] if not need.startswith("tensorlite"))]


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def driver_cuda() -> int:
    """Return the major version of CUDA that the driver supports: 12 or 13."""
    try:
        words = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return DEFAULT_CUDA
    found = re.search(r"CUDA.*Version:\s*(\d+)", words)
    return 13 if found and int(found[1]) >= 13 else DEFAULT_CUDA


def missing(needs: Iterable[str]) -> list[str]:
    """Return the requirements that this Python can neither import nor find installed, as is a package of programs alone."""
    return [need for need in needs if importlib.util.find_spec(import_name(need)) is None and not is_installed(pip_name(need))]


def is_installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def pip_name(need: str) -> str:
    """Return the package of a requirement such as "cupy-cuda12x[ctk]>=14"."""
    return re.match(r"[\w-]+", need)[0]  # type: ignore[index]


def import_name(need: str) -> str:
    return IMPORT_NAMES.get(pip_name(need), pip_name(need).replace("-", "_"))


def corpus_is_here() -> bool:
    """Return whether the cache holds the text that train.py reads without --data."""
    return (_cache_dir().cache_folder() / "tinyshakespeare.txt").is_file()


def _cache_dir() -> ModuleType:
    """Load tensorlite/cache_dir.py alone: to import it from its package would need NumPy."""
    spec = importlib.util.spec_from_file_location("cache_dir", ROOT / "tensorlite" / "cache_dir.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def platform_tags() -> list[str]:
    """Return the platforms of wheels that this machine can use, in pip's words."""
    if sys.platform == "win32":
        return ["win_amd64"]
    glibc = int((platform.libc_ver()[1] or "2.28").split(".")[1])
    machine = platform.machine()
    return [*(f"manylinux_2_{minor}_{machine}" for minor in range(glibc, OLDEST_GLIBC - 1, -1)), f"manylinux2014_{machine}"]


def how_to_carry(needs: Sequence[str]) -> str:
    """Return the two lines to type: one on a machine that reaches a package index, and one here."""
    named = shlex.join(need.partition(";")[0] for need in needs)
    target = ["--python-version", platform.python_version().rpartition(".")[0]]
    target += [word for tag in platform_tags() for word in ("--platform", tag)]
    return (
        "On a machine of the same operating system that reaches a package index, type\n"
        f"    python -m pip download --only-binary=:all: {shlex.join(target)} -d wheels {named}\n"
        "copy the folder wheels to this machine, and type here\n"
        f"    {shlex.quote(sys.executable)} -m pip install --no-index --find-links wheels {named}"
    )


def how_to_carry_the_corpus() -> str:
    return f"The section run reads a text. Copy one here and pass it with --data FILE. The lecture's is\n    {CORPUS}"


def all_needs() -> str:
    """Return the answer to --needs: every package, whether it is here, and how to carry those that are not."""
    groups = {"all sections": required(), "the section tests": for_tests(), **OPTIONAL}
    lines = [f"benchmarks/gpu.py on Python {platform.python_version()} with a driver of CUDA {driver_cuda()} needs"]
    lacking: list[str] = []
    for purpose, needs in groups.items():
        absent = missing(needs)
        lacking += absent
        lines += [f"for {purpose}:", *(f"    {need:32}{'missing' if need in absent else 'here'}" for need in needs)]
    lines.append(f"and the lecture's corpus: {'here' if corpus_is_here() else 'not in the cache'}")
    everything = [need for needs in groups.values() for need in needs]
    lines += ["", how_to_carry(lacking or everything), *([] if corpus_is_here() else [how_to_carry_the_corpus()])]
    return "\n".join(lines)


def answer(arguments: Sequence[str]) -> int | None:
    """Answer --needs, or say what is missing. Returns the exit status, or None if the benchmark can start."""
    if "--needs" in arguments:
        print(all_needs())
        return 0
    lacking = [] if CHILDREN.intersection(arguments) else missing(required())
    if not lacking:
        return None
    lacking += missing(for_tests())
    here = [f"error: this Python lacks packages that benchmarks/gpu.py needs: {', '.join(map(import_name, lacking))}"]
    here += [how_to_carry(lacking), "With a package index in reach, the second line works without --no-index --find-links wheels."]
    optional = [f"{' '.join(absent)} for {purpose}" for purpose, needs in OPTIONAL.items() if (absent := missing(needs))]
    here += [f"Optional in both lines: {', '.join(optional)}."] if optional else []
    here += [] if corpus_is_here() else [how_to_carry_the_corpus()]
    print("\n".join(here), file=sys.stderr)
    return 2
