"""The notebooks: they are what the script writes, every cell runs, and every hole is judged.

A hole is tried three ways: with the chapter's solution, with a known mistake, and left open.
"""

import ast
import contextlib
import importlib.metadata
import io
import json
import linecache
import re
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

import course
from paths import ROOT
from tensorlite.testing.bugs import BUGS, CHAPTERS
from tensorlite.testing.exercises import sources
from tensorlite.testing.exercises.notebook import check, checking
from tensorlite.testing.report import GradReport
from tensorlite.version import __version__

sys.path.insert(0, str(ROOT / "docs"))
import write_notebooks as notebooks

WRITTEN = {
    notebooks.COURSE_NOTEBOOK: notebooks.course_notebook,
    notebooks.FULL_MODEL: notebooks.full_model_notebook,
}
MOST_BYTES = 300 * 1024
HOLE = re.compile(r"    raise NotImplementedError\(.*\)")
every_notebook = pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)


def cells_of(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


def tags(cell):
    return cell["metadata"].get("tags", [])


def code_cells(path):
    return [cell for cell in cells_of(path) if cell["cell_type"] == "code"]


# ---- the files ----


@every_notebook
def test_a_notebook_is_what_the_chapters_say(path):
    assert WRITTEN[path]() == path.read_text(encoding="utf-8"), "run python docs/write_notebooks.py"


def format_errors(text):
    """Return what nbformat 4.5 forbids, and what ours has beyond that: no outputs, no state, unique ids."""
    content = json.loads(text)
    found = []
    if set(content) != {"cells", "metadata", "nbformat", "nbformat_minor"}:
        found.append(f"keys {sorted(content)}")
    if (content["nbformat"], content["nbformat_minor"]) != (4, 5):
        found.append("not nbformat 4.5")
    ids = [cell["id"] for cell in content["cells"]]
    found += [f"id {i}" for i in ids if not re.fullmatch(r"[a-zA-Z0-9-_]{1,64}", i) or ids.count(i) > 1]
    for cell in content["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            keys |= {"execution_count", "outputs"}
            found += [f"outputs in {cell['id']}"] if cell.get("outputs") != [] or cell["execution_count"] is not None else []
        elif cell["cell_type"] != "markdown":
            found.append(f"cell type {cell['cell_type']}")
        if set(cell) != keys:
            found.append(f"keys of {cell['id']}: {sorted(cell)}")
        lines = cell["source"]
        if not lines or any(not line.endswith("\n") for line in lines[:-1]) or any("\n" in line[:-1] for line in lines):
            found.append(f"source of {cell['id']} is not a list of lines")
        if any(not isinstance(tag, str) for tag in tags(cell)):
            found.append(f"tags of {cell['id']}")
    return found


@every_notebook
def test_the_format(path):
    text = path.read_text(encoding="utf-8")
    assert format_errors(text) == []
    assert path.stat().st_size < MOST_BYTES


@every_notebook
def test_cells_are_plain_python_without_absolute_paths(path):
    for cell in code_cells(path):
        ast.parse(source(cell))
        assert not re.search(r"""["'](/|[A-Z]:\\|~)\w""", source(cell)), source(cell)


def test_ids_are_stable():
    """A changed text leaves the ids alone, and so does a new cell in another section."""
    a = notebooks.Chapter(course.COURSE / "05-softmax.md")
    b = notebooks.Chapter(course.COURSE / "05-softmax.md")
    b.sections = {heading: text.replace("score", "SCORE") for heading, text in b.sections.items()}
    b.sections["Predict"] += "\n```python\nnew = 1\n```\n"
    ids_a, ids_b = ([cell.as_json()["id"] for cell in chapter.cells()] for chapter in (a, b))
    assert len(ids_b) == len(ids_a) + 1
    assert set(ids_a) < set(ids_b)


def test_every_link_of_the_notebooks_leads_somewhere():
    for path in WRITTEN:
        text = "\n".join(source(cell) for cell in cells_of(path) if cell["cell_type"] == "markdown")
        targets = set(re.findall(r"\]\(\s*([^)\s#]*)#?[^)]*\)", text))
        assert targets
        assert [target for target in targets if ":" not in target and not (path.parent / target).is_file()] == []
        assert "](#" not in text


def test_markdown_is_as_jupyter_has_it():
    text = "\n".join(source(cell) for cell in cells_of(notebooks.COURSE_NOTEBOOK) if cell["cell_type"] == "markdown")
    for github in ("```math", "$`", "`$", "<!--", "--write", "--try"):
        assert github not in text
    assert text.count("<details>") == text.count("</details>") > 40


# ---- the chapters ----


def test_every_chapter_has_its_parts():
    cells = cells_of(notebooks.COURSE_NOTEBOOK)
    text = "\n".join(source(cell) for cell in cells)
    for chapter in course.chapters():
        assert f"\n## {chapter.title}\n" in text
        assert f"[chapter {chapter.number}]({chapter.path.name})" in text
    n_holes = sum(max(1, len(set(chapter.written_ops))) for chapter in course.chapters())
    assert sum("hole" in tags(cell) for cell in cells) == sum("check" in tags(cell) for cell in cells) == n_holes
    for part in ("### Predict\n", "### By hand", "### Write it\n"):
        assert text.count(part) == course.N_CHAPTERS
    assert text.count("<summary>Hint") == 3 * course.N_CHAPTERS


def test_no_solution_is_shown():
    text = "\n".join(line.strip() for cell in cells_of(notebooks.COURSE_NOTEBOOK) for line in source(cell).splitlines())
    assert "<summary>Solution" not in text
    for chapter in course.chapters():
        for block in chapter.blocks:
            if block.is_solution:
                assert "\n".join(line.strip() for line in block.body.strip().splitlines()) not in text


OWN_MISTAKES = {  # of the holes that are the chapters' own: a part of the solution, what it becomes, and what the check names
    "numerical_gradient": ("/ (2 * h)", "/ h", "assert np.abs(found - 3 * x * x)"),
    "backward of 1": ("dsquare = dsquare + dcube * x", "dsquare = dcube * x", "fail         dx"),
    "backward of 2": ("np.cumsum(dy[::-1])[::-1]", "np.cumsum(dy)", "fail         dx"),
    "running_mean_backward": ("[::-1].cumsum(axis=0)[::-1]", ".cumsum(axis=0)", "fail         dv"),
    "block_backward": ("(dx, dh), ln1_cache", "(0 * dx, dh), ln1_cache", "fail         dwpe"),  # A of the chapter
    "adamw": ("m / (1 - beta1 ** t)", "m", "p, m, v, update 1"),
    "flash_backward": ("np.outer(ds, q[t]) * scale", "np.outer(ds, q[t])", "dk"),
}


class Session:
    """One namespace, in which cells run as in a notebook."""

    def __init__(self):
        self.space = {"__name__": "__main__"}
        self.count = 0

    def run(self, code, name=None):
        """Run code and return what it prints. Tracebacks find its lines, as in Jupyter."""
        self.count += 1
        name = name or f"<cell {self.count}>"
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, name, "exec"), self.space)
        return out.getvalue()


def chapters_with_cells():
    """Yield every chapter with its code cells."""
    written = iter(cells_of(notebooks.COURSE_NOTEBOOK))
    by_title = {f"## {chapter.title}": chapter for chapter in course.chapters()}
    chapter, cells = None, []
    for cell in written:
        title = source(cell).partition("\n")[0]
        if title.startswith("## "):
            if chapter:
                yield chapter, cells
            chapter, cells = by_title.get(title), []
        elif cell["cell_type"] == "code":
            cells.append(cell)


def mistake_of(chapter, name):
    """Return code that fills a hole with a mistake, and a pattern for what the check must say of it."""
    op = name.removesuffix("_backward")
    if op not in CHAPTERS:
        key = f"{name} of {chapter.number}" if name == "backward" else name
        right, wrong, says = OWN_MISTAKES[key]
        solution = course.solution(chapter, name)
        assert solution.count(right) == 1
        return solution.replace(right, wrong), re.escape(says)
    asked = [int(n) for n in re.findall(r"(?:tensorlite\.exercises |\*\*)(\d+)\b", chapter.path.read_text(encoding="utf-8"))]
    numbers = [n for n, bug in enumerate(BUGS, 1) if bug.op == op and bug.wrong != ("y",)]
    number = next((n for n in asked if n in numbers), numbers[0])
    bug = BUGS[number - 1]
    says = f"Wrong: {', '.join(bug.wrong)}\\." if op == "attention" else "(?s)" + ".*".join(f"\nfail +{w} " for w in bug.wrong)
    return HOLE.sub(lambda _: sources.body(bug.backward), notebooks.op_with_hole(op)), says


def judge(session, chapter, hole, check):
    """Fill a hole in three ways; return what the check says wrongly."""
    name = notebooks.name_of_hole(source(hole))
    mistake, says = mistake_of(chapter, name)
    session.run(source(hole))
    found = []
    for kind, code, expected in (
        ("solved", course.solution(chapter, name), rf"{name} is right\.\n\Z"),
        ("mistaken", mistake, says),
        ("open", source(hole), rf"\Aline \d+ of your cell: the hole in {name} is still open: write me"),
    ):
        session.run(code)
        out = session.run(source(check))
        if not re.search(expected, out):
            found.append(f"chapter {chapter.number}, {name}, {kind}: {out}")
        if kind != "solved" and f"{name} is right" in out:
            found.append(f"chapter {chapter.number}, {name}, {kind}, passes")
    return found


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder; the paths that the start cell changes are restored."""
    import scipy.differentiate  # noqa: F401

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def test_every_cell_runs_and_every_hole_is_judged(here):
    session = Session()
    wrong, n_judged = [], 0
    for chapter, cells in chapters_with_cells():
        for cell, following in zip(cells, [*cells[1:], None], strict=True):
            if "hole" in tags(cell):
                wrong += judge(session, chapter, cell, following)
                n_judged += 1
            elif "check" not in tags(cell):
                assert session.run(source(cell)) == ""
    assert wrong == []
    assert n_judged == sum("hole" in tags(cell) for cell in code_cells(notebooks.COURSE_NOTEBOOK))


@pytest.mark.long
@pytest.mark.usefixtures("here")
def test_every_chapter_runs_by_itself():
    for _, cells in chapters_with_cells():
        session = Session()
        for cell in cells:
            session.run(source(cell))


# ---- the checker ----


SOFTMAX = notebooks.op_with_hole("softmax")


def checked(session, body, arguments="softmax_forward, softmax_backward"):
    """Return what `check` prints when the hole of softmax is filled with these lines."""
    session.run(HOLE.sub(lambda _: body, SOFTMAX))
    session.space["check"] = check
    return session.run(f"check({arguments})")


def test_hints_say_more_from_level_to_level():
    session, wrong = Session(), "    return y * dy"
    first = checked(session, wrong)
    assert first.endswith("More: check(..., hint=2)\n")
    assert "hint:" not in first
    second = checked(session, wrong, "softmax_forward, softmax_backward, hint=2")
    assert "\ndx: Raising one entry lifts its own y" in second
    third = checked(session, wrong, "softmax_forward, softmax_backward, hint=3")
    assert "Derivation" in third
    assert "More" not in third


def test_an_error_in_the_function_is_named_by_its_line():
    number = SOFTMAX.splitlines().index("    y = cache") + 2
    out = checked(Session(), "    return y * dz")
    assert f"line {number} of your cell, in softmax_backward: NameError: name 'dz' is not defined\n    return y * dz\n" in out
    assert "<cell" not in out


def test_a_changed_forward_is_noticed():
    session = Session()
    session.run(SOFTMAX.replace("return y, y", "return 2 * y, y"))
    session.space["check"] = check
    out = session.run("check(softmax_forward, softmax_backward)")
    assert out.startswith("your cell: softmax_forward was changed")
    assert "--write" not in out


def double(x):
    return 2 * x


def test_a_check_that_fails_shows_its_line():
    session = Session()
    session.space |= {"checking": checking, "double": double, "np": np}
    assert session.run("with checking(double):\n    assert double(1) == 2\n") == "double is right.\n"
    out = session.run("with checking(double):\n    x = 3\n    assert double(x) == 7\n")
    assert out == "double is not right yet. This line of the check fails:\n    assert double(x) == 7\n"
    out = session.run('with checking(double):\n    np.testing.assert_allclose(double(1), 3, err_msg="dq")\n')
    assert "np.testing" in out
    assert "\ndq\n" in out
    out = session.run("with checking(double):\n    double(1)[0]\n")
    assert out.endswith("    double(1)[0]\nTypeError: 'int' object is not subscriptable\n")
    session.run("def double(x):\n    return x + one\n")
    out = session.run("with checking(double):\n    double(1)\n")
    assert out == "line 2 of your cell, in double: NameError: name 'one' is not defined\n    return x + one\n"


def test_a_report_at_the_end_of_a_cell_shows_its_text():
    """IPython calls this method, with a printer."""
    report, shown = GradReport(contract_violations=["dx is 0"]), []
    report._repr_pretty_(SimpleNamespace(text=shown.append), False)
    assert shown == ["gradcheck: fail\ncontract     dx is 0"]


def test_an_interrupt_is_passed_on():
    with pytest.raises(KeyboardInterrupt), checking(double):
        raise KeyboardInterrupt


# ---- the cell that finds the repository ----


START = next(source(cell) for cell in code_cells(notebooks.COURSE_NOTEBOOK))
NEEDED = next(ast.literal_eval(node.value) for node in ast.parse(START).body if ast.unparse(node).startswith("PACKAGES ="))


@pytest.fixture
def installed(monkeypatch):
    """The versions of installed packages: those that are needed, without tensorlite. A test may change them."""
    versions = dict(package.split(">=") for package in NEEDED)

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


@pytest.fixture
def pip(monkeypatch):
    """What pip is asked to install. It installs nothing, and ends with a status that a test may change."""
    asked = SimpleNamespace(packages=[], status=0)

    def run(command, **_):
        asked.packages += command[command.index("--quiet") + 1 :]
        return subprocess.CompletedProcess(command, asked.status, stdout="no such package")

    monkeypatch.setattr(subprocess, "run", run)
    return asked


def stopped():
    """Run the start cell; return the message that it ends with, as Jupyter shows it."""
    session = Session()
    with pytest.raises(Exception, match=r"\S") as caught:
        session.run(START)
    assert isinstance(caught.value, session.space["Stop"])
    assert caught.value._render_traceback_() == [str(caught.value)]
    return str(caught.value)


def write_repository(folder, version=__version__):
    """Write the two files by which a repository is known."""
    (folder / "tensorlite").mkdir(parents=True)
    (folder / "tensorlite" / "version.py").write_text(f'__version__ = "{version}"\n')
    (folder / "train.py").write_text("")


def write_zip(path, version=__version__):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tensorlite-main/tensorlite/version.py", f'__version__ = "{version}"\n')
        archive.writestr("tensorlite-main/train.py", "")


def test_the_repository_above_is_found(here, installed, monkeypatch):
    monkeypatch.chdir(notebooks.COURSE)
    assert Session().run(START) == f"tensorlite {__version__}: {ROOT}\n"
    assert sys.path[0] == str(ROOT)


def test_an_installed_one_is_taken(here, installed):
    installed["tensorlite"] = __version__
    assert Session().run(START) == f"tensorlite {__version__}: installed\n"


@pytest.mark.parametrize("version", [None, "0.0.9"])
def test_without_any_it_asks_for_a_zip(here, installed, version):
    if version:
        installed["tensorlite"] = version
        write_repository(here / "old", version)
    message = stopped()
    assert f"needs the repository of tensorlite {__version__}" in message
    assert "Upload a zip" in message


def test_a_zip_is_unpacked(here, installed):
    with zipfile.ZipFile(here / "other.zip", "w") as archive:
        archive.writestr("pictures/version.py", "")
    write_zip(here / "upload.zip")
    folder = here / "upload" / "tensorlite-main"
    assert Session().run(START) == f"tensorlite {__version__}: {folder}\n"
    assert sys.path[0] == str(folder)
    (here / "upload.zip").unlink()  # the second time the folder is there
    assert Session().run(START) == f"tensorlite {__version__}: {folder}\n"


@pytest.mark.parametrize("place", ["tensorlite", "data/tensorlite/tensorlite-main"])
def test_inputs_of_kaggle_are_found(here, installed, monkeypatch, place):
    write_repository(here / "input" / place)
    (here / "working").mkdir()
    monkeypatch.chdir(here / "working")
    assert Session().run(START) == f"tensorlite {__version__}: {here / 'input' / place}\n"


def test_a_zip_of_another_version_is_refused(here, installed):
    write_zip(here / "upload.zip", "0.0.9")
    assert "another version" in stopped()


def test_half_a_zip_is_refused(here, installed):
    write_zip(here / "upload.zip")
    data = (here / "upload.zip").read_bytes()
    (here / "upload.zip").write_bytes(data[: len(data) // 2])
    assert stopped().startswith("upload.zip is not a complete zip")


def test_missing_packages_are_installed(here, installed, pip, monkeypatch):
    installed["tensorlite"] = __version__
    del installed["tyro"]
    monkeypatch.delitem(sys.modules, "tyro", raising=False)
    assert Session().run(START).startswith("installing tyro>=1.0\n")
    assert pip.packages == ["tyro>=1.0"]


def test_a_package_in_use_that_is_replaced_needs_a_restart(here, installed, pip):
    installed |= {"tensorlite": __version__, "numpy": "1.26.4"}
    assert "Restart the kernel" in stopped()
    assert pip.packages == ["numpy>=2.1.2"]


def test_what_pip_says_is_shown(here, installed, pip):
    installed |= {"tensorlite": __version__, "scipy": "1.9"}
    pip.status = 1
    assert stopped() == "pip could not install scipy>=1.15:\nno such package"


# ---- the cell that installs CuPy ----


GPU = next(source(cell) for cell in code_cells(notebooks.FULL_MODEL) if "CUDA_PACKAGES =" in source(cell))


@pytest.fixture
def gpu_session(here, installed, monkeypatch):
    """A function that runs the cell where nvidia-smi prints a text, or does not exist; it returns what is installed."""

    def run(smi, arguments="--preset shakespeare --device cuda"):
        def nvidia_smi(command, **_):
            if smi is None:
                raise FileNotFoundError(command[0])
            return subprocess.CompletedProcess(command, 0, stdout=smi)

        session, asked = Session(), []
        session.run(START)
        session.space |= {"ARGUMENTS": arguments, "install": asked.extend}
        monkeypatch.setattr(subprocess, "run", nvidia_smi)
        try:
            session.run(GPU)
        except session.space["Stop"] as stop:
            return str(stop)
        return asked

    installed["tensorlite"] = __version__
    return run


@pytest.mark.parametrize(
    ("smi", "cupy"),
    [
        ("| NVIDIA-SMI 550.54  Driver Version: 550.54  CUDA Version: 12.4 |", "cupy-cuda12x"),
        ("| NVIDIA-SMI 580.65  Driver Version: 580.65  CUDA Version: 13.0 |", "cupy-cuda13x"),
        ("| NVIDIA-SMI 595.71  KMD Version: 595.71  CUDA UMD Version: 13.2 |", "cupy-cuda13x"),
        ("| CUDA Version: 14.0 |", "cupy-cuda13x"),
    ],
)
def test_cupy_fits_the_driver(gpu_session, smi, cupy):
    packages = gpu_session(smi)
    assert [package.partition("[")[0] for package in packages if "cupy" in package] == [cupy]
    assert packages == notebooks.project()["optional-dependencies"][cupy.removeprefix("cupy-")]


def test_a_cupy_for_cuda_12_stays(gpu_session, installed):
    installed["cupy-cuda12x"] = "13.6"
    assert gpu_session("| CUDA Version: 13.0 |")[0].startswith("cupy-cuda12x")


@pytest.mark.parametrize(
    ("smi", "says"),
    [
        (None, "no NVIDIA GPU"),
        ("Failed to initialize NVML", "Failed to initialize NVML"),
        ("| CUDA Version: 11.8 |", "needs 12 or 13"),
    ],
)
def test_without_a_usable_gpu_the_cell_says_so(gpu_session, smi, says):
    assert says in gpu_session(smi)


def test_on_a_cpu_nothing_is_installed(gpu_session):
    assert gpu_session(None, "--preset laptop --device cpu") == []


# ---- training ----


@pytest.mark.long
@pytest.mark.program
@pytest.mark.usefixtures("shakespeare")
@every_notebook
def test_training_and_sampling(path, here, installed, monkeypatch):
    """The cells after the parameters, with the only line of theirs that a reader changes."""
    installed["tensorlite"] = __version__
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = code_cells(path)
    place = next(i for i, cell in enumerate(cells) if "parameters" in tags(cell))
    session = Session()
    session.run(START)
    session.run('ARGUMENTS = "--preset laptop --device cpu --max-iters 3 --eval-batches 2 --val-chars 5000"')
    out = [session.run(source(cell)) for cell in cells[place + 1 :] if source(cell) != START]
    assert "step 3: train loss" in "".join(out)
    assert out[-1].startswith("ROMEO:") or "ROMEO:" in out[-1]
    figure = session.space["plt"].gcf()
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [2, 2]
    session.space["plt"].close(figure)
    assert len(list(here.glob("runs/*/best.safetensors"))) == 1


@pytest.mark.long
@pytest.mark.program
def test_a_program_that_fails_ends_the_cell(here, installed):
    installed["tensorlite"] = __version__
    session = Session()
    session.run(START)
    training = next(source(cell) for cell in code_cells(notebooks.COURSE_NOTEBOOK) if "def run(" in source(cell))
    session.run('ARGUMENTS = "--preset desktop"')
    with pytest.raises(session.space["Stop"], match="exit status 2"):
        session.run(training)
