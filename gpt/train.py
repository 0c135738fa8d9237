"""Train a model of the lecture: python -m gpt.train --help"""

import contextlib
import dataclasses
import itertools
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TextIO

import tyro
from threadpoolctl import threadpool_limits

from gpt import console
from gpt.analysis.announce import blas_threads, default_threads, describe, estimated_time
from gpt.analysis.dry_run import step_plan
from gpt.analysis.gpus import figures_for
from gpt.analysis.profile import profile
from gpt.config import PRESETS, ModelConfig, TrainConfig, override
from gpt.errors import CheckpointError, ConfigError
from gpt.generate import generate
from gpt.reading import is_stream
from gpt.train_args import Args
from gpt.training import checkpoint, run_dir
from gpt.training.backends import select_backend
from gpt.training.data_parallel import Workers
from gpt.training.distributed import SingleProcess, agree, init_distributed, main_process_first, on_device
from gpt.training.run_setup import RunSetup, fine_tune, new_run, resume
from gpt.training.trainer import Trainer
from tensorlite import Device, pick_device

SAMPLE_LENGTH = 500
OUT_OF_MEMORY = "out of memory ({}); lower --batch-size and raise --gradient-accumulation-steps"


def main() -> int:
    """Run the command line; return the exit status. Whatever a user can get wrong ends in one line, not in a traceback.

    Under mpiexec every rank runs this: the first one prints, and an error of any of them ends all.
    """
    console.set_up()
    os.environ.pop("MPLBACKEND", None)  # a notebook's own, which matplotlib may not find here; no window is opened anyway
    ranks = SingleProcess()
    try:
        ranks = init_distributed()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere if ranks.rank else sys.stdout):
            return console.finish(run(parse(ranks, nowhere), ranks))
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        return failed(*console.explain(error, OUT_OF_MEMORY), ranks)


def parse(ranks: SingleProcess, nowhere: TextIO) -> Args:
    """Read the command line. What is wrong with it is said once, by the first rank, unless that one has another."""
    try:
        with contextlib.redirect_stderr(nowhere if ranks.rank else sys.stderr):
            return tyro.cli(Args)
    except SystemExit as end:
        if ranks.size > 1 and end.code:  # the others would wait for this rank
            failed(f"error: rank {ranks.rank} cannot read its command line: {shlex.join(sys.argv)}", 2, ranks)
        raise


def failed(message: str, status: int, ranks: SingleProcess) -> int:
    """Say why and end, with all ranks. What is wrong with a command line, every rank finds: the first has time to say it."""
    if ranks.rank:
        time.sleep(2)
    print(message, file=sys.stderr, flush=True)
    if ranks.size > 1:
        time.sleep(0.5)  # till mpiexec has passed the line on: it ends all at once
        ranks.abort(status)
    return console.finish(status)


def run(args: Args, ranks: SingleProcess) -> int:
    """Settle the plan, say what it will take, train, and show a sample."""
    agree(ranks, {"--dry-run": args.dry_run, "--profile": args.profile})
    device = pick_device(args.device, ranks.local_rank)  # before anything is on any GPU
    if args.dry_run:
        return dry_run(args, device)
    streams = [str(path) for path in args.texts() if is_stream(path)]
    if streams and ranks.size > 1:
        raise ConfigError(
            f"data {streams[0]} can be read only once, and each of {ranks.size} ranks reads it; save it to a file first"
        )
    ranks = on_device(ranks, device.xp)
    backend = select_backend(args.backend, device, args.precision)
    plan = main_process_first(ranks, lambda: make_setup(args, device))
    threads = default_threads(plan.model, device, ranks.local_size) if args.threads is None else args.threads
    if threads < 1:
        raise ConfigError(f"threads must be at least 1, not {threads}")
    if threads > 1 and device.name != "cpu":
        raise ConfigError(f"threads {threads}: a GPU takes its work from one; several GPUs are several ranks (mpiexec)")
    if args.shards is None and not args.resume:
        shards = min(plan.train.batch_size, ranks.size * (threads if backend.sharded else 1))
        plan = dataclasses.replace(plan, train=override(plan.train, {"shards": shards}))
    agree(ranks, plan.facts() | {"device": device.name, "backend": f"{backend.name} ({backend.description})"})
    workers = Workers(backend.make, plan.train.shards, threads, ranks)
    describe(plan, device, backend, workers, threads)
    with contextlib.ExitStack() as stack:
        stack.enter_context(threadpool_limits(blas_threads(workers, threads)))
        if args.profile:
            print(profile(Trainer.of(plan, workers, device.xp)))
            return 0
        if ranks.rank == 0:
            stack.enter_context(run_dir.locked(plan.out))
            aside = None if plan.resumed else run_dir.archive_previous(plan.out)
            if aside:
                console.note(f"an earlier run was moved to {aside}")
        trainer = Trainer.of(plan, workers, device.xp)
        print(f"time     {estimated_time(trainer)}", flush=True)
        ended_by = trainer.run()
        if ended_by is not None:
            print(f"stopped at step {trainer.state.step}; saved in {plan.out}; go on with: {args.resume_command(plan.out, ranks)}")
            return 128 + ended_by
        if trainer.writes:
            show_sample(trainer)
            print(trainer.summary())
    return 0


def dry_run(args: Args, device: Device) -> int:
    """Print the plan of a step on a GPU."""
    gpu = figures_for(args.gpu, device)
    plan = make_setup(args, device)
    print(step_plan(plan.model, plan.train, args.precision, len(plan.corpus.train), gpu))
    return 0


def make_setup(args: Args, device: Device) -> RunSetup:
    """Resolve every choice before any work is done."""
    name = args.preset or ("shakespeare" if device.name == "cuda" else "laptop")
    model_fields, train_fields = args.given(ModelConfig), args.given(TrainConfig)
    data, val_data = (joined(name, getattr(args, name)) for name in ("data", "val_data"))
    if args.resume and args.init_from:
        raise ConfigError("resume and init-from exclude each other: one goes on with a run, the other begins one")
    if args.drop_unknown and not args.init_from:
        raise ConfigError("drop-unknown needs init-from: a new vocabulary has every character of its text")
    seed = 1337 if args.seed is None else args.seed
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed must be in [0, 2^63), not {seed}")
    if args.resume:
        fixed = dataclasses.asdict(PRESETS[args.preset].model) if args.preset else {}
        fixed.pop("vocab_size", None)  # the text's, not the preset's
        last = None if args.out or args.preset else run_dir.newest(Path("runs"), run_dir.LAST)
        if last:
            console.note(f"the newest run is gone on with: {last.parent}")
        out = args.out or (last.parent if last else Path("runs") / name)
        return resume(out, fixed | model_fields, train_fields, data, args.seed, val_data)
    if args.init_from:
        base = PRESETS[name].train if args.preset else None
        out = args.out or Path("runs") / "finetune"
        return fine_tune(args.init_from, base, model_fields, train_fields, out, data, args.drop_unknown, seed, val_data)
    if args.preset is None:
        print(
            f"preset   {name}: no --preset given, and "
            + ("a CUDA device works" if device.name == "cuda" else "no CUDA device works")
        )
    return new_run(PRESETS[name], model_fields, train_fields, args.out or Path("runs") / name, data, seed, val_data)


def joined(flag: str, uses: tuple[tuple[Path, ...], ...]) -> tuple[Path, ...]:
    """The files that all uses of a flag name, in order."""
    if not all(uses):
        raise ConfigError(f"{flag} needs a file, or - for standard input")
    return tuple(itertools.chain(*uses))


def show_sample(trainer: Trainer) -> None:
    """Print some text of the best model of this run; of the last one, with a note, where the best is gone."""
    ops, state = trainer.workers.ops, trainer.state
    try:
        best = checkpoint.load(run_dir.best_checkpoint(trainer.out))
        which, step, flat = "best", best.step, trainer.xp.asarray(best.params)
    except CheckpointError as error:
        console.note(f"{error}")
        which, step, flat = "last", state.step, state.params
    params = state.table.tree(ops.compute_params(flat))
    tokenizer = trainer.corpus.tokenizer
    prompt = trainer.xp.asarray(tokenizer.encode(tokenizer.start))
    tokens = generate(ops, trainer.model, params, prompt, SAMPLE_LENGTH, trainer.model_config, seed=trainer.seed)
    print(f"\n--- {SAMPLE_LENGTH} characters from the {which} model (step {step}) ---")
    print(tokenizer.decode(list(tokens)))
    print("---", flush=True)


if __name__ == "__main__":
    sys.exit(main())
