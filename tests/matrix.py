"""The numeric tests, those that start no program and are not long, under other kernels of OpenBLAS and NumPy.   make matrix

What a processor makes the two libraries choose must not decide a verdict. The variables of a setting are set for its own command
alone. A setting that takes no other kernels than one before it, because this processor or this library lacks them, is skipped by
name. With --others the tests under this processor's own kernels are left out, because something else has run them. Other
arguments go to pytest. The exit status is 0 if every test passed in every setting, as many in each.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

HERE = Path(__file__).parent
VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "NPY_DISABLE_CPU_FEATURES")
DISPATCHED = " ".join(np._core._multiarray_umath.__cpu_dispatch__)  # this NumPy's names; it warns of any other
SETTINGS = [
    {},
    {"OPENBLAS_CORETYPE": "Haswell"},
    {"OPENBLAS_CORETYPE": "Nehalem", "NPY_DISABLE_CPU_FEATURES": DISPATCHED},
]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not program and not gpu and not long"]


def kernels(environment):
    """What tests/support/kernels.py says in this environment, or how it ended."""
    done = subprocess.run(
        [sys.executable, HERE / "support" / "kernels.py"], env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else f"ended with status {done.returncode}"


def run(environment, arguments):
    """The exit status of pytest, its output, and how many tests ran, and caught a mistake planted in a kernel."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [*PYTEST, f"--junitxml={report}", *arguments]
        done = subprocess.run(
            command, cwd=HERE.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    passed = [case.get("name") for case in cases if not len(case)]  # a case has a child where it failed or was skipped
    planted = sum(name.startswith("test_a_planted_mistake_is_noticed") for name in passed)
    return done.returncode, done.stdout, len(passed), planted


def main(arguments):
    """Run every setting, print a line for each."""
    plain = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    seen, results = {}, []
    for setting in SETTINGS:
        name = " ".join(f"{key}='{value}'" for key, value in setting.items()) or "nothing set"
        environment = plain | setting
        found = kernels(environment)
        if found in seen or found.startswith("ended"):
            print(
                f"{name}: skipped, {found if found not in seen else f'the same kernels as with {seen[found]}: {found}'}", flush=True
            )
            continue
        seen[found] = name
        if "--others" in arguments and not setting:
            print(f"{name}: left out (--others): {found}", flush=True)
            continue
        began = time.monotonic()
        status, output, passed, planted = run(environment, [argument for argument in arguments if argument != "--others"])
        results.append((status, passed, planted))
        print(
            f"{name}: {found}: {passed} tests passed, {planted} planted mistakes caught, {time.monotonic() - began:.0f} s",
            flush=True,
        )
        if status:
            print(output, flush=True)
    return 0 if len(set(results)) == 1 and results[0][:1] == (0,) and results[0][1] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
