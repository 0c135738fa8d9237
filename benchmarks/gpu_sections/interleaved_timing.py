"""Times implementations in turns, each in a process of its own."""

import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_sections.report import MIN_SECONDS, Section, say
from gpu_sections.workload import SCRIPT

RESERVED = 30.0  # seconds that are kept for the rounds while implementations warm up, at most a third of the section's


class Server:
    """An implementation's process, from outside. A question that it does not answer in time ends it."""

    def __init__(self, name: str, precision: str, log: Path) -> None:
        self.name, self.log = name, log
        command = [sys.executable, str(SCRIPT), "--serve", name, "--precisions", precision]
        with log.open("w") as errors:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with self.process.stdout as lines:  # type: ignore[union-attr]
            for line in lines:
                self.lines.put(line)
        self.lines.put("")  # it has ended

    def ask(self, warm: int, blocks: int, each: int, timeout: float) -> dict[str, Any]:
        """Raises RuntimeError with what is known of it when it fails, ends, or is not done in time."""
        try:
            print(json.dumps({"warm": warm, "blocks": blocks, "each": each}), file=self.process.stdin, flush=True)
            line = self.lines.get(timeout=timeout)
        except queue.Empty:
            self.end()
            raise RuntimeError(f"no answer in {timeout:.0f} s") from None
        except OSError:
            line = ""
        answer = json.loads(line) if line else {"error": f"ended with status {self.process.wait()}: {self.last_words()}"}
        if "error" in answer:
            self.end()
            raise RuntimeError(answer["error"])
        return answer

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)
        self.process.kill()
        self.process.wait()


def time_interleaved(section: Section, names: Sequence[str], rounds: int, each: int | None = None, patience: float = 120.0) -> None:
    """Add a row per implementation. All start together, warm up one after another, since some autotune then, and take turns.

    each: steps per block; by default as many as take 0.3 s, 1 to 50.
    patience: seconds for the first steps, in which some compile.
    """
    with tempfile.TemporaryDirectory() as logs:
        servers = {name: Server(name, section.args.precision, Path(logs) / f"{i}.log") for i, name in enumerate(names)}
        sizes: dict[str, int] = {}
        reserved = min(RESERVED, section.left / 3)

        def asked(name: str, **question: Any) -> dict[str, Any] | None:
            try:
                answer = servers[name].ask(**question)
            except RuntimeError as error:
                section.row(name, error=str(error), log=servers[name].log.read_text(errors="replace")[-4000:])
                section.fail(name, str(error))
                del servers[name]
                return None
            seconds = section.found.get("rows", {}).get(name, {}).get("seconds", [])
            section.row(name, last=answer["last"], memory=answer["memory"], seconds=seconds + answer["seconds"] * (name in sizes))
            return answer

        try:
            for name in names:
                began, spare = time.monotonic(), section.left - reserved
                if spare < MIN_SECONDS:
                    section.fail(name, f"left out: {max(spare, 0):.0f} s were left to warm up")
                    servers.pop(name).end()
                    continue
                answer = asked(name, warm=3, blocks=1, each=5, timeout=min(patience, spare))
                if answer:
                    sizes[name] = each or max(1, min(50, round(0.3 / answer["seconds"][0])))
                    section.row(name, warm_up=time.monotonic() - began)
                    say(f"  {name}: ready after {time.monotonic() - began:.0f} s")
            for _ in range(rounds):
                for name in [*servers]:
                    if section.left < 8:
                        section.fail("rounds", "not all were made: no time was left")
                        return
                    asked(name, warm=max(1, sizes[name] // 5), blocks=2, each=sizes[name], timeout=min(30.0, section.left))
        finally:
            for server in servers.values():
                server.end()
