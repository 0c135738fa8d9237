"""The page: one HTML file that holds its data, style and script, and loads nothing."""

import base64
import html
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "web"
SCRIPTS = (
    "data.js",
    "formula.js",
    "stops.js",
    "numbers.js",
    "dom.js",
    "mathml.js",
    "table.js",
    "tape.js",
    "line.js",
    "why.js",
    "plane.js",
    "predict.js",
    "about.js",
    "main.js",
)


def page(data: Mapping[str, Any]) -> str:
    """Return the HTML of a page with this data, which `page_data` makes."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    packed = base64.b64encode(zlib.compress(text.encode(), 9)).decode("ascii")
    script = "\n".join(without_comments(name) for name in SCRIPTS)
    parts = {
        "/*style*/": without_comments("style.css"),
        "/*script*/": script,
        "/*data*/": packed,
        "<!--static-->": static(data),
        "<!--title-->": html.escape(title(data)),  # the last, because it holds the text of the user
    }
    found = (FOLDER / "template.html").read_text(encoding="utf-8")
    for place, text in parts.items():
        found = found.replace(place, text)
    return found


def without_comments(name: str) -> str:
    """Return a file of the page without the lines that are comments, which are for readers of the repository."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    return re.sub(r"^ *(//.*|/\*.*\*/)\n", "", text, flags=re.MULTILINE)


def unpack(page_html: str) -> dict[str, Any]:
    """Return the data of a page: what `page` put in."""
    packed = page_html.split('<script type="text/plain" id="data">', 1)[1].split("</script>", 1)[0]
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def title(data: Mapping[str, Any]) -> str:
    """Return one line that says what the page shows."""
    return f"One training step on {data['text']!r}, forward and backward, number by number"


def static(data: Mapping[str, Any]) -> str:
    """Return the forward and backward of the step as a list of formulas, for a browser that runs no script."""
    rows = data["rows"]
    forward = [row["forward"] for row in rows]
    backward = [call for row in reversed(rows) for call in row["backward"]]
    seen: set[str] = set()
    parts = []
    for call in (data["calls"][number] for number in forward + backward):
        if call["function"] not in seen:
            seen.add(call["function"])
            parts.append(_function(call["function"], data["functions"][call["function"]]))
    return "\n".join(parts)


def _function(name: str, function: Mapping[str, Any]) -> str:
    """Return a function's formula line, derivation and formulas."""
    steps = "".join(f"<li>{html.escape(text)}</li>" for _, text in function["derivation"])
    parts = [f"<h3>{name}</h3><p>{html.escape(function['says'])}</p>"]
    if steps:
        parts.append(f"<p>Derivation:</p><ol>{steps}</ol>")
    parts.append("<ul>")
    for formula in function["formulas"]:
        text = html.escape(formula["text"])
        means = html.escape(formula["means"])
        parts.append(f"<li><code>{text}</code> {means}</li>")
    parts.append("</ul>")
    return "".join(parts)
