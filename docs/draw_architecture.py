"""Write the generated parts of docs/architecture.md, and the picture beside it, from the source files.

    python docs/draw_architecture.py

The generated parts stand between markers. The tree has the first sentence of every file, and the import table comes from the
import statements.
"""

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = ROOT / "docs" / "architecture.md", ROOT / "docs" / "data-flow.svg"
PACKAGES = ("tensorlite", "gpt")
SUFFIXES = (".py", ".cu", ".cuh", ".js")
LONGEST = 100  # characters per comment of the tree; a test checks the first sentences of the two packages


def first_sentence(path: Path) -> str:
    """Return the first sentence of a file: of its docstring, or of the comment that it begins with."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    else:
        header = re.match(r"(?://.*\n)+", text)
        text = re.sub(r"^// ?", "", header.group(), flags=re.MULTILINE) if header else ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[\w)`\"])\.\s(?!\d)", paragraph + " ")[0].strip().rstrip(".")


def comment(path: Path) -> str:
    """Return the first sentence, cut after the last clause that fits."""
    sentence = first_sentence(path)
    if len(sentence) <= LONGEST:
        return sentence
    clauses = re.match(rf".{{1,{LONGEST}}}(?=[:;,] )", sentence)
    return clauses.group() if clauses else sentence


FOLDERS = {  # comments of the folders that are not packages
    "kernels": "the CUDA kernels: one file per op; layout, reduce, spin and the *.cuh are helpers",
    "simple": "kernels to read first: one thread per row, no fusion; only the tests run them",
    "cli": "the command lines: consoles, signals, bad input",
    "cpu": "the CPU backend: its memory pool, and its values against the reference",
    "cuda": "kernels, runtime and captured steps on the CPU shim",
    "gpu": "the same checks on a real GPU",
    "runtime": "cuBLASLt, autotuning, capture",
    "gpt": "the files of gpt/",
    "models": "the models",
    "training": "the training loop and what it needs",
    "analysis": "costs, profile and dry run",
    "trace": "the trace page: its formulas, its numbers, and the page in a browser",
    "web": "the script of the page; template.html and style.css are beside it",
    "mutation": "mutation testing of the ops, the optimizer and gpt/ (of kernels: cuda/test_planted.py)",
    "reference": "every op on every backend: gradients, values, properties, PyTorch",
    "repo": "the README, the docs, the benchmarks and the proofs",
    "shared": "arrays, random bits and the op table",
    "testing": "the gradient checker, the known bugs, the exercises",
    "support": "what the tests share: inputs, references, stand-ins",
    "golden": "files of expected values, and the scripts that wrote them",
    "shim": "runs the CUDA kernels on a CPU",
    "benchmarks": "the scripts that RESULTS.md was measured with",
}


def tree(*roots: str) -> str:
    """Return the tree of files below the roots, each with its comment. A folder's files come before its subfolders."""
    lines: list[tuple[str, str]] = []

    def walk(folder: Path, depth: int) -> None:
        start = folder / "__init__.py"
        lines.append((f"{'  ' * depth}{folder.name}/", first_sentence(start) if start.exists() else FOLDERS[folder.name]))
        entries = sorted(path for path in folder.iterdir() if path.name not in ("__init__.py", "__pycache__"))
        for path in entries:
            if path.suffix in SUFFIXES:
                lines.append((f"{'  ' * (depth + 1)}{path.name}", comment(path)))
        for path in entries:
            if path.is_dir() and any(inner.suffix in SUFFIXES for inner in path.rglob("*")):
                walk(path, depth + 1)

    for root in roots:
        if root.endswith(".py"):
            lines.append((root, comment(ROOT / root)))
        else:
            walk(ROOT / root, 0)
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:{width}}{sentence}".rstrip() for name, sentence in lines)


def package_of(name: str) -> str:
    """Return the folder that a dotted name imports from, such as "gpt/training"; "" if it is not in this project."""
    path = Path(*name.split("."))
    if path.parts[0] not in PACKAGES:
        return ""
    while not (ROOT / path).is_dir():
        path = path.parent
    return path.as_posix()


@functools.cache
def imports() -> dict[str, list[str]]:
    """Return the packages that each package imports."""
    found: dict[str, set[str]] = {}
    for path in sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py")):
        here = path.parent.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            found.setdefault(here, set()).update(map(package_of, names))
    return {package: sorted(others - {package, ""}) for package, others in sorted(found.items())}


def who_imports_whom() -> str:
    """Return the import table, one line per package."""
    found = imports()
    width = max(map(len, found)) + 2
    return "\n".join(f"{package:{width}}{', '.join(others) or '-'}" for package, others in found.items())


BOXES = {  # x, y, label, file
    "text": (0, 2, "text", "gpt/data.py, gpt/tokenizer.py"),
    "batch": (1, 2, "idx, targets (B, T)", "ops.get_batch"),
    "forward": (2, 2, "model.forward", "gpt/models/gpt.py"),
    "loss": (3, 2, "loss", "a mean over B T tokens"),
    "caches": (2.5, 1, "caches", "what backward needs"),
    "backward": (3, 0, "model.backward", "gpt/models/gpt.py"),
    "grads": (2, 0, "grads by name", "ops.pack_grads"),
    "flat": (1, 0, "one flat gradient", "summed over shards and ranks"),
    "update": (0, 0, "clip, AdamW", "tensorlite/reference/optim.py"),
    "params": (0.5, 1, "one flat parameter buffer with named views", "gpt/params.py"),
}
ARROWS = (
    ("text", "batch"),
    ("batch", "forward"),
    ("forward", "loss"),
    ("forward", "caches"),
    ("caches", "backward"),
    ("loss", "backward"),
    ("backward", "grads"),
    ("grads", "flat"),
    ("flat", "update"),
    ("update", "params"),
    ("params", "forward"),
)


def draw() -> None:
    """Draw the data flow of one training step."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    look = {"svg.hashsalt": "tensorlite", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    with mpl.rc_context(look):
        figure = Figure(figsize=(10, 4))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(-0.5, 3.5), ylim=(-0.4, 2.4))
        axes.axis("off")
        style = {"boxstyle": "round,pad=0.5", "facecolor": "#eef3f8", "edgecolor": "#30506e"}
        drawn = {
            name: axes.text(x, y, f"{label}\n{where}", ha="center", va="center", bbox=style)
            for name, (x, y, label, where) in BOXES.items()
        }
        figure.draw_without_rendering()  # computes the sizes of the boxes, where the arrows begin and end
        for a, b in ARROWS:
            ends = {"patchA": drawn[a].get_bbox_patch(), "patchB": drawn[b].get_bbox_patch(), "shrinkA": 1, "shrinkB": 2}
            axes.annotate("", BOXES[b][:2], BOXES[a][:2], arrowprops={"arrowstyle": "->", "color": "#30506e", **ends})
        figure.savefig(PICTURE, metadata={"Date": None, "Creator": None})


def page() -> str:
    """Return the page with its generated parts replaced."""
    text = PAGE.read_text(encoding="utf-8")
    parts = {
        "tree": tree("train.py", "sample.py", *PACKAGES),
        "tests": tree("tests", "benchmarks"),
        "imports": who_imports_whom(),
    }
    for name, part in parts.items():
        pattern = rf"(<!-- {name} -->\n```text\n).*?(\n```\n<!-- end -->)"
        text = re.sub(pattern, lambda found, part=part: found.group(1) + part + found.group(2), text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    draw()
