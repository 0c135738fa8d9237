"""The program of train.py: settles a run, trains it and shows a sample (python -m gpt.train)."""

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
from gpt.analysis.announce import describe, estimated_time
from gpt.analysis.dry_run import step_table
from gpt.analysis.gpus import figures_for
from gpt.analysis.profile import profile
from gpt.config import PRESETS, ModelConfig, TrainConfig, override
from gpt.errors import CheckpointError, ConfigError
from gpt.generate import generate
from gpt.limits import processors
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
    """Run the command line; return the exit status. Any mistake of a user ends in one line, not in a traceback.

    Under mpiexec every rank runs this: rank 0 prints, and an error on any rank ends all of them.
    """
    console.set_up()
    os.environ.pop("MPLBACKEND", None)  # a notebook's own, which matplotlib may not find here; no window is opened anyway
    ranks = SingleProcess()
    try:
        ranks = init_distributed()
        with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull if ranks.rank else sys.stdout):
            return console.finish(run(parse(ranks, devnull), ranks))
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        return fail(*console.explain(error, OUT_OF_MEMORY), ranks)


def parse(ranks: SingleProcess, devnull: TextIO) -> Args:
    """Read the command line. Rank 0 alone reports what is wrong with it, unless another rank was given other flags."""
    try:
        with contextlib.redirect_stderr(devnull if ranks.rank else sys.stderr):
            return tyro.cli(Args, prog=Path(sys.argv[0]).name)
    except SystemExit as end:
        if ranks.size > 1 and end.code:  # the others would wait for this rank
            fail(f"error: rank {ranks.rank} cannot read its command line: {shlex.join(sys.argv)}", 2, ranks)
        raise


def fail(message: str, status: int, ranks: SingleProcess) -> int:
    """Print the message and end all ranks. The other ranks wait, so that rank 0 can report a mistake that all of them find."""
    if ranks.rank:
        time.sleep(2)
    print(message, file=sys.stderr, flush=True)
    if ranks.size > 1:
        time.sleep(0.5)  # till mpiexec has passed the line on: it ends all at once
        ranks.abort(status)
    return console.finish(status)


def run(args: Args, ranks: SingleProcess) -> int:
    """Resolve the setup, print what the run will take, train, and show a sample."""
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
    setup = main_process_first(ranks, lambda: make_setup(args, device))
    threads = default_threads(setup.model, device, ranks.local_size) if args.threads is None else args.threads
    if threads < 1:
        raise ConfigError(f"threads must be at least 1, not {threads}")
    if threads > 1 and device.name != "cpu":
        raise ConfigError(f"threads {threads}: a GPU takes its work from one; several GPUs are several ranks (mpiexec)")
    if args.shards is None and not args.resume:
        shards = min(setup.train.batch_size, ranks.size * (threads if backend.sharded else 1))
        setup = dataclasses.replace(setup, train=override(setup.train, {"shards": shards}))
    agree(ranks, setup.facts() | {"device": device.name, "backend": f"{backend.name} ({backend.description})"})
    workers = Workers(backend.make, setup.train.shards, threads, ranks)
    describe(setup, device, backend, workers, threads)
    with contextlib.ExitStack() as stack:
        stack.enter_context(threadpool_limits(blas_threads(workers, threads)))
        if args.profile:
            print(profile(Trainer(setup, workers, device.xp)))
            return 0
        if ranks.rank == 0:
            stack.enter_context(run_dir.locked(setup.out))
            archive = None if setup.resumed else run_dir.archive_previous(setup.out)
            if archive:
                console.note(f"an earlier run was moved to {archive}")
        trainer = Trainer(setup, workers, device.xp)
        print(f"time     {estimated_time(trainer)}", flush=True)
        ended_by = trainer.run()
        if ended_by is not None:
            print(
                f"stopped at step {trainer.state.step}; saved in {setup.out}; go on with: {args.resume_command(setup.out, ranks)}"
            )
            return 128 + ended_by
        if trainer.is_writer:
            show_sample(trainer)
            print(trainer.summary())
    return 0


def dry_run(args: Args, device: Device) -> int:
    """Print the table of a step on a GPU."""
    gpu = figures_for(args.gpu, device)
    setup = make_setup(args, device)
    print(step_table(setup.model, setup.train, args.precision, len(setup.corpus.train), gpu))
    return 0


def blas_threads(workers: Workers, threads: int) -> int:
    """With several shards each matmul stays on the thread of its shard, because its result, bit for bit, depends on its threads."""
    return threads if workers.shards == 1 else 1


def default_threads(model: ModelConfig, device: Device, local_size: int = 1) -> int:
    """All processors, or this rank's share of them, but one thread for a small stage, whose matmuls end before another wakes up.

    A GPU is fed by one thread.
    """
    if device.name != "cpu":
        return 1
    return 1 if model.n_embd < 100 and model.block_size < 32 else max(1, processors() // local_size)


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
        best = checkpoint.load(run_dir.best_checkpoint(trainer.setup.out))
        which, step, flat = "best", best.step, trainer.xp.asarray(best.params)
    except CheckpointError as error:
        console.note(f"{error}")
        which, step, flat = "last", state.step, state.params
    params = state.table.tree(ops.compute_params(flat))
    tokenizer = trainer.setup.corpus.tokenizer
    prompt = trainer.xp.asarray(tokenizer.encode(tokenizer.start))
    tokens = generate(ops, trainer.task.model, params, prompt, SAMPLE_LENGTH, trainer.task.config, seed=trainer.task.seed)
    print(f"\n--- {SAMPLE_LENGTH} characters from the {which} model (step {step}) ---")
    print(tokenizer.decode(list(tokens)))
    print("---", flush=True)


if __name__ == "__main__":
    sys.exit(main())
