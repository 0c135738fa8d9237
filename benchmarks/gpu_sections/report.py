"""gpu.json, and a section at work, which writes to it. Whatever goes wrong is written there too, and the rest goes on."""

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIN_SECONDS = 10.0  # no section, and no part of one that takes a while, starts with less time than this


def say(text: str) -> None:
    """Print a line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


@dataclass
class Report:
    """gpu.json, which maps a section's name to what it found. One process at a time writes it."""

    path: Path

    @property
    def found(self) -> dict[str, Any]:
        try:
            return json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}

    def put(self, section: str, found: dict[str, Any]) -> None:
        """Write the file whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".tmp")
        partial.write_text(json.dumps(self.found | {section: found}, indent=1))
        partial.replace(self.path)

    def fail(self, section: str, what: str, why: str) -> None:
        """Add a failure to what the section found."""
        found = self.found.get(section, {})
        found.setdefault("failures", {})[what] = why
        self.put(section, found)


@dataclass
class Section:
    """A section at work: its arguments, its time limit, and what it has found."""

    name: str
    report: Report
    args: Any  # conductor.Args
    found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.end = time.monotonic() + self.args.limit
        self.put()

    @property
    def left(self) -> float:
        """Seconds until the limit."""
        return self.end - time.monotonic()

    def put(self, **found: Any) -> None:
        self.found |= found
        self.report.put(self.name, self.found)

    def row(self, name: str, **numbers: Any) -> None:
        """Add values to a line of the section's table."""
        self.found.setdefault("rows", {}).setdefault(name, {}).update(numbers)
        self.put()

    def fail(self, what: str, why: str) -> None:
        say(f"  {what}: {why}")
        self.found.setdefault("failures", {})[what] = why
        self.put()

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Note an exception of the block, with its traceback, and let the section go on."""
        try:
            yield
        except Exception as error:
            self.found.setdefault("tracebacks", {})[what] = traceback.format_exc()[-6000:]
            self.fail(what, said(error))


def said(error: BaseException) -> str:
    """Return an error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".rstrip(": ")


def shown(show: Callable[[dict], str], found: dict[str, Any]) -> str:
    """Return a section's table and its failures. If too little was found for a table, it says so."""
    try:
        text = show(found) if found else ""
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        text = f"(not all of it was found: {said(error)})"
    failures = [f"  failed: {what}: {why}"[:200] for what, why in found.get("failures", {}).items()]
    return "\n".join([line for line in (text, *failures) if line])
