"""The program of train.py: sets up a run, trains it and shows a sample (python -m gpt.train)."""

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
from gpt.training.run_setup import RunSetup, fine_tune, new_run, require_latest, resume
from gpt.training.trainer import Trainer
from tensorlite import Array, Device, pick_device

SAMPLE_LENGTH = 500
OUT_OF_MEMORY = "out of memory ({}); lower --batch-size and raise --gradient-accumulation-steps"


def main() -> int:
    """Run the command line and return the exit status. A mistake of the user ends in one line, not in a traceback.

    Under mpiexec every rank runs this. Rank 0 prints, and an error on any rank ends all of them.
    """
    console.set_up()
    os.environ.pop("MPLBACKEND", None)  # a notebook sets its own, which matplotlib may not find here; no window is opened anyway
    ranks = SingleProcess()
    try:
        ranks = init_distributed()
        with open(os.devnull, "w", encoding="utf-8") as devnull, contextlib.redirect_stdout(devnull if ranks.rank else sys.stdout):
            return console.finish(run(parse(ranks, devnull), ranks))
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        return fail(*console.explain(error, OUT_OF_MEMORY), ranks)


def parse(ranks: SingleProcess, devnull: TextIO) -> Args:
    """Read the command line. Only rank 0 reports a mistake in it, unless another rank was given other flags."""
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
        time.sleep(0.5)  # until mpiexec has passed the line on: abort ends all processes at once
        ranks.abort(status)
    return console.finish(status)


def run(args: Args, ranks: SingleProcess) -> int:
    """Set up the run, print what it will take, train, and show a sample. Returns the exit status."""
    agree(ranks, {"--dry-run": args.dry_run, "--profile": args.profile})
    device = pick_device(args.device, ranks.local_rank)  # before anything is on any GPU
    if args.dry_run:
        return dry_run(args, device)
    require_rereadable(args, ranks)
    ranks = on_device(ranks, device.xp)
    backend = select_backend(args.backend, device, args.precision)
    setup = main_process_first(ranks, lambda: make_setup(args, device))
    threads = choose_threads(args, setup, device, ranks)
    require_row_per_rank(setup, ranks)
    if args.shards is None and not args.resume:
        setup = with_default_shards(setup, ranks.size * (threads if backend.sharded else 1))
    agree(ranks, setup.facts() | {"device": device.name, "backend": f"{backend.name} ({backend.description})"})
    workers = Workers(backend.make, setup.train.shards, threads, ranks)
    describe(setup, device, backend, workers, threads)
    with threadpool_limits(blas_threads(workers, threads)):
        if args.profile:
            print(profile(Trainer(setup, workers, device.xp)))
            return 0
        return train(args, setup, workers, device)


def train(args: Args, setup: RunSetup, workers: Workers, device: Device) -> int:
    """Train to the end or to a signal, then show a sample. Returns the exit status."""
    ranks = workers.ranks
    with run_dir.locked(setup.out) if ranks.rank == 0 else contextlib.nullcontext():
        if ranks.rank == 0 and not setup.resumed:
            archive = run_dir.archive_previous(setup.out)
            if archive:
                console.note(f"an earlier run was moved to {archive}")
        if ranks.rank == 0 and setup.resumed:
            require_latest(setup)
        trainer = Trainer(setup, workers, device.xp)
        print(f"time     {estimated_time(trainer)}", flush=True)
        ended_by = trainer.run()
        if ended_by is not None:
            command = args.resume_command(setup.out, ranks)
            print(f"stopped at step {trainer.state.step}; saved in {setup.out}; go on with: {command}")
            return 128 + ended_by
        if trainer.is_writer:
            show_sample(trainer)
            print(trainer.summary())
    return 0


def dry_run(args: Args, device: Device) -> int:
    """Print the kernels of a step on a GPU."""
    gpu = figures_for(args.gpu, device)
    setup = make_setup(args, device)
    print(step_table(setup.model, setup.train, args.precision, len(setup.corpus.train), gpu))
    return 0


def require_rereadable(args: Args, ranks: SingleProcess) -> None:
    """Raise ConfigError if several ranks would have to read a stream."""
    for path in args.texts():
        if is_stream(path) and ranks.size > 1:
            raise ConfigError(
                f"data {path} can be read only once, and each of {ranks.size} ranks reads it; save it to a file first"
            )


def require_row_per_rank(setup: RunSetup, ranks: SingleProcess) -> None:
    """Raise ConfigError if some rank would have nothing to compute."""
    rows = setup.train.batch_size
    if rows < ranks.size:
        way_out = f"set --batch-size {ranks.size} or more, or start fewer ranks"
        raise ConfigError(f"batch_size {rows} has fewer rows than there are ranks, {ranks.size}; {way_out}")


def choose_threads(args: Args, setup: RunSetup, device: Device, ranks: SingleProcess) -> int:
    """Return the number of threads: --threads, or a default for the device and the model."""
    threads = default_threads(setup.model, device, ranks.local_size) if args.threads is None else args.threads
    if threads < 1:
        raise ConfigError(f"threads must be at least 1, not {threads}")
    if threads > 1 and device.name != "cpu":
        raise ConfigError(f"threads must be 1 on a GPU, not {threads}; to use several GPUs, start one rank per GPU with mpiexec")
    return threads


def default_threads(model: ModelConfig, device: Device, local_size: int = 1) -> int:
    """Return this rank's share of the processors. A GPU, or a small stage on a CPU, gets one thread.

    The matmuls of a small stage end before a second thread has woken up.
    """
    small_stage = model.n_embd < 100 and model.block_size < 32
    if device.name != "cpu" or small_stage:
        return 1
    return max(1, processors() // local_size)


def with_default_shards(setup: RunSetup, shards: int) -> RunSetup:
    """Return the setup with this many shards, or as many as its batch has rows."""
    train = override(setup.train, {"shards": min(setup.train.batch_size, shards)})
    return dataclasses.replace(setup, train=train)


def blas_threads(workers: Workers, threads: int) -> int:
    """Return the BLAS threads per matmul.

    With several shards it is one, the thread of the shard, because the bits of a matmul depend on how many threads compute it.
    """
    return threads if workers.shards == 1 else 1


def make_setup(args: Args, device: Device) -> RunSetup:
    """Resolve every choice before any work is done."""
    name = args.preset or ("shakespeare" if device.name == "cuda" else "laptop")
    model_fields = args.given(ModelConfig)
    train_fields = args.given(TrainConfig)
    data = joined("data", args.data)
    val_data = joined("val_data", args.val_data)
    if args.resume and args.init_from:
        raise ConfigError("resume and init-from exclude each other; --resume continues a run, --init-from starts a new one")
    if args.drop_unknown and not args.init_from:
        raise ConfigError("drop-unknown needs --init-from; a new vocabulary contains every character of its text")
    seed = 1337 if args.seed is None else args.seed
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed must be in [0, 2^63), not {seed}")
    if args.resume:
        preset_fields = dataclasses.asdict(PRESETS[args.preset].model) if args.preset else {}
        preset_fields.pop("vocab_size", None)  # it comes from the text, not from the preset
        out = find_run(args, name)
        return resume(out, preset_fields | model_fields, train_fields, data, seed=args.seed, val_data=val_data)
    if args.init_from:
        base = PRESETS[name].train if args.preset else None
        out = args.out or Path("runs") / "finetune"
        return fine_tune(args.init_from, base, model_fields, train_fields, out, data, args.drop_unknown, seed, val_data)
    if args.preset is None:
        works = "a CUDA device works" if device.name == "cuda" else "no CUDA device works"
        print(f"preset   {name}: no --preset given, and {works}")
    out = args.out or Path("runs") / name
    return new_run(PRESETS[name], model_fields, train_fields, out, data, seed, val_data)


def find_run(args: Args, name: str) -> Path:
    """Return the folder of the run to resume: --out, or the folder of the preset, or the newest one under runs/."""
    if args.out:
        return args.out
    newest = None if args.preset else run_dir.newest(Path("runs"), run_dir.LAST)
    if newest is None:
        return Path("runs") / name
    console.note(f"resuming the newest run, {newest.parent}")
    return newest.parent


def joined(flag: str, uses: tuple[tuple[Path, ...], ...]) -> tuple[Path, ...]:
    """Return the files that all uses of a flag name, in order."""
    if not all(uses):
        raise ConfigError(f"{flag} needs a file, or - for standard input")
    return tuple(itertools.chain(*uses))


def show_sample(trainer: Trainer) -> None:
    """Print some text of the best model of this run, or of the last one, with a note, if the best is missing."""
    which, step, flat = model_to_show(trainer)
    ops, xp = trainer.workers.ops, trainer.xp
    params = trainer.state.table.tree(ops.compute_params(flat))
    tokenizer = trainer.setup.corpus.tokenizer
    prompt = xp.asarray(tokenizer.encode(tokenizer.start))
    tokens = generate(ops, trainer.task.model, params, prompt, SAMPLE_LENGTH, trainer.task.config, seed=trainer.task.seed)
    print(f"\n--- {SAMPLE_LENGTH} characters from the {which} model (step {step}) ---")
    print(tokenizer.decode(tokens))
    print("---", flush=True)


def model_to_show(trainer: Trainer) -> tuple[str, int, Array]:
    """Return "best" or "last", the step of that model, and its parameters."""
    try:
        best = checkpoint.load(run_dir.best_checkpoint(trainer.setup.out))
    except CheckpointError as error:
        console.note(str(error))
        return "last", trainer.state.step, trainer.state.params
    return "best", best.step, trainer.xp.asarray(best.params)


if __name__ == "__main__":
    sys.exit(main())
