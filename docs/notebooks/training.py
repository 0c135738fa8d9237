"""The cells of both notebooks that train a model and show how its loss fell."""

# %%
import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt


def run(*arguments):
    """Run a Python program, and show its lines as they come."""
    command = [sys.executable, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "encoding": "utf-8"}
    with subprocess.Popen(command, **pipes) as program:
        for line in program.stdout:
            print(line, end="", flush=True)
    if program.returncode:
        raise Stop(f"The program ended with exit status {program.returncode}.")


run("-m", "gpt.train", *ARGUMENTS.split(), "--out", "runs/@run@")

# %%
lines = Path("runs/@run@/metrics.jsonl").read_text().splitlines()
records = [json.loads(line) for line in lines]
for name in ("train_loss", "val_loss"):
    plt.plot([record["step"] for record in records], [record[name] for record in records], label=name)
plt.xlabel("step")
plt.ylabel("loss (nats per character)")
legend = plt.legend()

# %%
run("-m", "gpt.sample", "--checkpoint", "runs/@run@", "--prompt", "ROMEO:", "--temperature", "0.8")
