"""Write docs/api.md from the signatures and docstrings in the source files.

    python docs/write_api.py

The files are read and never imported, so the page does not depend on the machine or on what is installed.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
COLUMNS = 100  # of a line of prose
TESTING = {  # () stands for all public names
    "property_tests": ("check_layer", "CheckLayerError", "LayerReport"),
    "shapes": ("drawn_inputs",),
    "adapters/objects": ("of_object",),
    "adapters/losses": ("of_loss",),
    "adapters/from_torch": ("from_torch", "parameters_of"),
    "adapters/from_jax": ("from_jax",),
    "properties": (),
    "report": ("Entry", "Argument"),
    "bugs/bug": ("Bug", "example"),
}
GPT = {  # what a script of yours may import from gpt
    "train": ("main",),
    "sample": ("main",),
    "config": ("ModelConfig", "TrainConfig", "Preset"),
    "data": ("Corpus", "load_corpus", "tiny_shakespeare"),
    "tokenizer": ("CharTokenizer",),
    "params": ("Param", "ParamTable"),
    "models/gpt": (),
    "generate": (),
    "training/run_setup": (),
    "training/trainer": ("Trainer",),
    "training/data_parallel": ("Workers",),
    "training/step": (),
    "training/checkpoint": ("Checkpoint", "save", "load"),
    "errors": (),
}
INTRODUCTION = """\
# API

The public names of this repository, with their signatures and docstrings. The page is written by
`python docs/write_api.py` from the source files, so change a docstring there and not here. The
words are explained in [glossary.md](glossary.md), and the files are listed in
[architecture.md](architecture.md).

- [tensorlite](#tensorlite): what `import tensorlite` offers
- [The ops](#the-ops): every forward with its hand-derived backward
- [The rest of a backend](#the-rest-of-a-backend): optimizer, randomness and the training step
- [tensorlite.testing](#tensorlitetesting): the gradient checker, properties and known bugs
- [gpt](#gpt): the models, training and generation

Shapes are written with the letters of the glossary: (B, T, C) is batch, time and channels."""

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


class Module:
    """A source file: its lines, and its definitions by name."""

    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        self.path = path
        self.lines = text.splitlines()
        self.tree = ast.parse(text)
        self.definitions = definitions(self.tree.body)
        self.imported = {
            alias.name: node.module.replace(".", "/")
            for node in self.tree.body
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }

    def source(self, first: int, last: int) -> str:
        """Lines `first` to `last`, counted from 1, without their common indentation."""
        return textwrap.dedent("\n".join(self.lines[first - 1 : last]))

    def public(self) -> list[str]:
        """The functions and classes without a leading underscore, in the order of the file."""
        found = self.definitions.items()
        return [name for name, node in found if isinstance(node, ast.FunctionDef | ast.ClassDef) and not name.startswith("_")]


def module(name: str) -> Module:
    """The module of a path without its ending, as "tensorlite/random"."""
    return Module(ROOT / f"{name}.py")


def definer(here: Module, name: str) -> Module:
    """The module that defines a name which this one may only import."""
    while name not in here.definitions and name in here.imported:
        here = module(here.imported[name])
    return here


def definitions(body: list[ast.stmt]) -> dict[str, Definition]:
    """The functions, classes and assigned names of a module or a class."""
    found: dict[str, Definition] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return found


# ---- from a docstring to markdown ----

DERIVATION = re.compile(r"Derivation.*\b1\. ")  # one that begins on its first line
ITEM = re.compile(r"(?!Derivation)\*{0,2}[A-Za-z_]\w*(, \*{0,2}\w+)*: |(Returns|Raises|Yields) ")
SENTENCE_END = (".", ":", "?", "!")  # of a line; after any other ending, a word with a colon continues the sentence
SPECIAL = re.compile(r"\*(?=\S)|(?<=\S)\*|<(?=[A-Za-z/!?])|(?<!\w)_")  # what markdown would not show as it is


def markdown(docstring: str) -> str:
    """A docstring as markdown: its summary, a list of the parameters, indented lines as code blocks, and paragraphs."""
    summary, *paragraphs = docstring.split("\n")
    while paragraphs and paragraphs[0].strip() and not is_item(paragraphs[0], summary) and not paragraphs[0].startswith(" "):
        summary += " " + paragraphs.pop(0)
    blocks = "\n".join(paragraphs).split("\n\n")
    found = [prose([summary]), *(part for block in blocks for part in parts(block.strip("\n").split("\n")))]
    return "\n\n".join(filter(None, found))


def parts(lines: list[str]) -> Iterator[str]:
    """The pieces of one paragraph of a docstring. Neighbouring list items are one piece."""
    items: list[str] = []
    before = ""
    while lines:
        item = is_item(lines[0], before)
        block = [before := lines.pop(0)]
        if item:
            while lines and not is_item(lines[0], before) and not is_step(lines[0]):
                block.append(before := lines.pop(0))
            items.append(prose(block, bullet="- "))
            continue
        if items:
            yield "\n".join(items)
            items = []
        indented = block[0].startswith(" ") or DERIVATION.match(block[0]) is not None
        while lines and lines[0].startswith(" ") == indented and not is_item(lines[0], before):
            block.append(before := lines.pop(0))
        yield fence("text", textwrap.dedent("\n".join(block))) if indented else prose(block)
    if items:
        yield "\n".join(items)


def is_item(line: str, before: str) -> bool:
    """Whether a line begins the description of a parameter, and does not continue the sentence of the line before."""
    return ITEM.match(line) is not None and (not before.strip() or before.rstrip().endswith(SENTENCE_END))


def is_step(line: str) -> bool:
    """Whether a line is a numbered step of a derivation."""
    return re.match(r"\s+\d+\. ", line) is not None


def prose(lines: list[str], bullet: str = "") -> str:
    """Lines of text as one paragraph of at most COLUMNS, or as one item of a list."""
    words = escape(" ".join(" ".join(lines).split()))
    filled = textwrap.wrap(words, COLUMNS - len(bullet), break_long_words=False, break_on_hyphens=False)
    safe = [re.sub(r"^(\d*)([-+#>.)])", r"\1\\\2", line) for line in filled]  # no line begins a list or a heading
    return bullet + f"\n{' ' * len(bullet)}".join(safe)


def escape(text: str) -> str:
    """Text whose special characters markdown shows as they are. What is between backticks stays."""
    pieces = re.split(r"(`[^`]*`)", text)
    pieces[::2] = [SPECIAL.sub(r"\\\g<0>", piece) for piece in pieces[::2]]
    return "".join(pieces)


def fence(language: str, text: str) -> str:
    """A code block."""
    return f"```{language}\n{text}\n```"


# ---- from a definition to an entry ----


def signature(here: Module, node: ast.FunctionDef | ast.ClassDef) -> str:
    """The lines of a function or class above its docstring, as the file has them, without hints for the linter."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return re.sub("  # noqa.*", "", here.source(first, node.body[0].lineno - 1))


def entry(title: str, here: Module, name: str) -> str:
    """The heading, source file, signature and docstring of one name, and for a class those of its methods."""
    if name not in here.definitions:
        raise SystemExit(f"{here.path.relative_to(ROOT)} has no {name}, which docs/write_api.py lists")
    node = here.definitions[name]
    link = here.path.relative_to(ROOT).as_posix()
    found = [f"### {title}", f"[{link}](../{link})"]
    if isinstance(node, ast.ClassDef):
        found += [fence("python", class_source(here, node)), documentation(node)]
        for method, body in definitions(node.body).items():
            if isinstance(body, ast.FunctionDef) and not method.startswith("_") and ast.get_docstring(body):
                found += [f"#### {name}.{method}", fence("python", signature(here, body) + " ..."), documentation(body)]
    elif isinstance(node, ast.FunctionDef):
        found += [fence("python", signature(here, node) + " ..."), documentation(node)]
    else:
        found += [fence("python", here.source(node.lineno, node.end_lineno or node.lineno))]
    return "\n\n".join(filter(None, found))


def documentation(node: ast.FunctionDef | ast.ClassDef) -> str:
    """The docstring of a definition as markdown; "" where there is none."""
    return markdown(ast.get_docstring(node) or "")


def class_source(here: Module, node: ast.ClassDef) -> str:
    """The first line of a class, its fields with their comments, its constructor, and the methods without a docstring."""
    members = []
    for name, body in definitions(node.body).items():
        if isinstance(body, ast.FunctionDef):
            if name == "__init__" or not (name.startswith("_") or ast.get_docstring(body)):
                members.append(signature(here, body) + " ...")
        elif isinstance(body, ast.AnnAssign) or isinstance(body.value, ast.Constant):
            members.append(here.source(body.lineno, body.end_lineno or body.lineno))
    if not members:
        return signature(here, node) + " ..."
    return "\n".join([signature(here, node), *(textwrap.indent(member, "    ") for member in members)])


# ---- the page ----


def package() -> Iterator[str]:
    """The names of tensorlite.__all__, each from the file that defines it."""
    start = module("tensorlite/__init__")
    yield markdown(ast.get_docstring(start.tree) or "")
    for name in ast.literal_eval(start.definitions["__all__"].value):
        yield entry(name, definer(start, name), name)


def backend() -> tuple[list[str], list[str]]:
    """The entries of the ops, and those of everything else that ReferenceOps takes from other files."""
    reference = [Module(path) for path in sorted((ROOT / "tensorlite" / "reference").glob("*.py"))]
    functions = {name: here for here in [module("tensorlite/random"), *reference] for name in here.public()}
    members = [name for name in definitions(class_of(module("tensorlite/reference/ops"))) if name in functions]
    stems = dict.fromkeys(re.sub("_(forward|backward)$", "", name) for name in members)
    ops = {f"{stem}_{direction}": None for stem in stems for direction in ("forward", "backward")}
    pairs = [entry(name, functions[name], name) for name in ops if name in functions]
    others = [entry(name, functions[name], name) for name in members if name not in ops]
    return pairs, others


def class_of(here: Module) -> list[ast.stmt]:
    """The body of ReferenceOps."""
    node = here.definitions["ReferenceOps"]
    assert isinstance(node, ast.ClassDef)
    return node.body


def entries(folder: str, modules: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """The entries of some modules, under their dotted names: all public ones, or those that are listed."""
    for name, wanted in modules.items():
        here = module(f"{folder}/{name}")
        for item in wanted or here.public():
            in_folder = name in ("properties", "property_tests", "shapes") or name.startswith("adapters/")
            place = folder if in_folder else f"{folder}/{name}".removesuffix("/bug")  # where a script imports it from
            yield entry(f"{place}.{item}".replace("/", "."), here, item)


def page() -> str:
    """The whole page."""
    ops, others = backend()
    groups = {
        "tensorlite": list(package()),
        "The ops": ["Those whose first argument is `ops` are methods of a backend, which stands for that argument.", *ops],
        "The rest of a backend": ["The methods of [ReferenceOps](#referenceops) are above.", *others],
        "tensorlite.testing": [
            "[gradcheck](#gradcheck), [GradReport](#gradreport) and [GradcheckError](#gradcheckerror) are above.",
            *entries("tensorlite/testing", TESTING),
        ],
        "gpt": list(entries("gpt", GPT)),
    }
    found = [INTRODUCTION]
    for heading, texts in groups.items():
        found += [f"## {heading}", *texts]
    return "\n\n".join(found) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
