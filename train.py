"""Train a model of the lecture: python train.py --help"""

import contextlib
import dataclasses
import itertools
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import tyro
from threadpoolctl import threadpool_info, threadpool_limits

from gpt import checkpoint, console, folder
from gpt.advice import resume_command
from gpt.backends import Backend, PrecisionName, choose
from gpt.config import PRESETS, ModelConfig, TrainConfig, override
from gpt.dry_run import step_plan
from gpt.errors import CheckpointError, ConfigError
from gpt.estimate import available_bytes, count, human_bytes, human_seconds, seconds_of
from gpt.evaluate import evaluated_chars, rows_at_once
from gpt.generate import generate
from gpt.gpus import figures_for
from gpt.limits import memory_in_use, processors
from gpt.parallel import Workers
from gpt.plan import Plan, fine_tune, new_run, resume
from gpt.profile import profile
from gpt.ranks import Alone, agree, first_rank_first, join, on_device
from gpt.reading import is_stream
from gpt.trainer import Trainer
from tensorlite import Device, pick_device

PresetName = Literal["bigram", "head", "multihead", "feedforward", "residual", "layernorm", "laptop", "shakespeare"]
SAMPLE_LENGTH = 500
OUT_OF_MEMORY = "out of memory ({}); lower --batch-size and raise --gradient-accumulation-steps"

_preset = tyro.conf.arg(help_behavior_hint="(default: the preset's)")
Int = Annotated[int | None, _preset, tyro.conf.arg(metavar="INT")]
Float = Annotated[float | None, _preset, tyro.conf.arg(metavar="FLOAT")]
Bool = Annotated[bool | None, _preset, tyro.conf.arg(metavar="{True,False}")]
File = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
Files = Annotated[  # each use of the flag appends what follows it
    tuple[tuple[Path, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH [PATH ...]", help_behavior_hint="")
]


@dataclass
class Args:
    """Train a character-level GPT, from the lecture's bigram to its full Shakespeare model, with hand-derived gradients.

    The presets bigram, head, multihead, feedforward, residual and layernorm are the lecture's small stages (about a minute
    each); laptop is a small GPT for a CPU (minutes); shakespeare is the full model (10.8 million parameters; for a GPU). Any
    field left out has the preset's value. Ctrl-C finishes the step, saves, and ends; --resume goes on from there.
    """

    preset: Annotated[PresetName | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """bigram, head, multihead, feedforward, residual, layernorm, laptop or shakespeare. Default: shakespeare where CUDA works,
    else laptop."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute. auto: CUDA where it works, else the CPU."""
    backend: Literal["auto", "reference", "fast"] = "auto"
    """Which implementation of the layers: the reference, the one that reads like the lecture, or a faster equal. auto: fast
    where it works."""
    precision: PrecisionName = "auto"
    """Of the fast backend on a GPU: float32; tf32, float32 with rounded matrix products; or bf16. auto: bf16."""
    out: File = None
    """Folder for metrics.jsonl, loss.png, best.safetensors and last.safetensors; an earlier run in it is moved aside.
    Default: runs/PRESET."""
    data: Files = ()
    """A UTF-8 text to learn, or several, joined in their order as they are; - is standard input. The last tenth validates.
    Default: the lecture's Shakespeare corpus, fetched once."""
    val_data: Files = ()
    """A validation text of its own: all of --data is then trained on. A new vocabulary has the characters of both."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 1337)")] = None
    """Seed of the parameters, the batches and the dropout masks."""
    resume: bool = False
    """Go on from last.safetensors in the folder, bit for bit as if never stopped. Model fields cannot change. Without --out and
    --preset: the newest run below runs/."""
    init_from: File = None
    """Fine-tune: start from this checkpoint's weights, model fields and vocabulary (a file, or a folder: its best)."""
    drop_unknown: bool = False
    """With --init-from: leave out characters of the text that the vocabulary lacks, instead of refusing them."""
    dry_run: bool = False
    """Instead of training, print what a step on a GPU is made of: each op's kernels, their FLOPs and bytes, and their roofline.
    It needs no GPU."""
    gpu: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """With --dry-run: which GPU, H200 or "RTX 4090" for example. Default: the one here, else H200."""
    profile: bool = False
    """Instead of training, print where the time of a step goes: each op's time, bytes and FLOP/s against this machine's limits."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """Threads on the CPU, one for each shard or, with one shard, for matrix products. Default: all cores (of each rank its
    share), but one for the small stages, whose matrices are small."""

    n_layer: Int = None
    """Number of blocks."""
    n_head: Int = None
    """Attention heads; must divide n-embd."""
    n_embd: Int = None
    """Channels."""
    block_size: Int = None
    """Context: how many characters the model sees."""
    dropout: Float = None
    """Probability of dropping a value in training, in [0, 1)."""
    activation: Annotated[Literal["gelu", "relu"] | None, _preset, tyro.conf.arg(metavar="{gelu,relu}")] = None
    """gelu, or the lecture's relu."""
    bias: Bool = None
    """Biases on linear layers and layernorms (q, k and v never have one)."""
    tied: Bool = None
    """Use the token embedding, transposed, as the head."""
    init_std: Float = None
    """Matrices start as N(0, init-std)."""
    batch_size: Int = None
    """Windows of text in one forward pass."""
    max_iters: Int = None
    """Number of updates."""
    learning_rate: Float = None
    """Peak learning rate."""
    min_lr: Float = None
    """Learning rate at the end of the cosine; equal to learning-rate: constant."""
    warmup_iters: Int = None
    """Updates over which the learning rate rises from 0."""
    weight_decay: Float = None
    """AdamW's decay of matrices and embeddings."""
    beta1: Float = None
    """AdamW's decay of the gradient mean."""
    beta2: Float = None
    """AdamW's decay of the squared-gradient mean."""
    grad_clip: Float = None
    """Largest norm of the gradient; 0: no clipping."""
    gradient_accumulation_steps: Int = None
    """Forward passes summed into one update: the effect of a larger batch in the memory of a small one."""
    shards: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """Parts of each batch that threads and ranks compute side by side. The same shards give the same bits on any number of
    threads, others the same to rounding. Default: a shard a thread with the fast backend; with --resume the run's own."""
    eval_interval: Int = None
    """Updates between evaluations."""
    eval_batches: Int = None
    """Random batches in the train loss."""
    val_chars: Int = None
    """At most so many characters of the validation split in the validation loss, in windows spread evenly over it; 0: all."""

    def given(self, kind: type) -> dict[str, Any]:
        """The fields of a configuration that were set on the command line."""
        names = [f.name for f in dataclasses.fields(kind) if hasattr(self, f.name)]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def resume_command(self, out: Path, ranks: Alone) -> str:
        """The command that goes on with this run: its checkpoint holds all but where to compute, and where the text is."""
        flags: list[str] = []
        for flag, uses in (("--data", self.data), ("--val-data", self.val_data)):
            flags += [flag, *map(str, itertools.chain(*uses))] if uses else []
        for name in ("device", "backend", "precision", "threads"):
            if getattr(self, name) not in ("auto", None):
                flags += [f"--{name}", str(getattr(self, name))]
        again = "(piping in the same text again) " if any(map(is_stream, self.texts())) else ""
        return again + resume_command(out, flags, ranks.size)

    def texts(self) -> list[Path]:
        """The files of the text and of the validation text."""
        return list(itertools.chain(*self.data, *self.val_data))


def main() -> int:
    """Run the command line; return the exit status. Whatever a user can get wrong ends in one line, not in a traceback.

    Under mpiexec every rank runs this: the first one prints, and an error of any of them ends all.
    """
    console.set_up()
    os.environ.pop("MPLBACKEND", None)  # a notebook's own, which matplotlib may not find here; no window is opened anyway
    ranks = Alone()
    try:
        ranks = join()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere if ranks.rank else sys.stdout):
            return console.finish(run(parse(ranks, nowhere), ranks))
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        return failed(*console.explain(error, OUT_OF_MEMORY), ranks)


def parse(ranks: Alone, nowhere: TextIO) -> Args:
    """Read the command line. What is wrong with it is said once, by the first rank, unless that one has another."""
    try:
        with contextlib.redirect_stderr(nowhere if ranks.rank else sys.stderr):
            return tyro.cli(Args)
    except SystemExit as end:
        if ranks.size > 1 and end.code:  # the others would wait for this rank
            failed(f"error: rank {ranks.rank} cannot read its command line: {shlex.join(sys.argv)}", 2, ranks)
        raise


def failed(message: str, status: int, ranks: Alone) -> int:
    """Say why and end, with all ranks. What is wrong with a command line, every rank finds: the first has time to say it."""
    if ranks.rank:
        time.sleep(2)
    print(message, file=sys.stderr, flush=True)
    if ranks.size > 1:
        time.sleep(0.5)  # till mpiexec has passed the line on: it ends all at once
        ranks.end(status)
    return console.finish(status)


def run(args: Args, ranks: Alone) -> int:
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
    backend = choose(args.backend, device, args.precision)
    plan = first_rank_first(ranks, lambda: make_plan(args, device))
    threads = default_threads(plan.model, device, ranks.neighbours) if args.threads is None else args.threads
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
            stack.enter_context(folder.claimed(plan.out))
            aside = None if plan.resumed else folder.move_aside(plan.out)
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
    plan = make_plan(args, device)
    print(step_plan(plan.model, plan.train, args.precision, len(plan.corpus.train), gpu))
    return 0


def blas_threads(workers: Workers, threads: int) -> int:
    """With several shards each product stays on its shard's thread, however many there are: the bits depend on it."""
    return threads if workers.shards == 1 else 1


def default_threads(model: ModelConfig, device: Device, neighbours: int = 1) -> int:
    """All processors, or this rank's share of them; but one for a small stage, whose matrices are done before another has woken up.

    And one for a GPU, which has one queue of work.
    """
    if device.name != "cpu":
        return 1
    return 1 if model.n_embd < 100 and model.block_size < 32 else max(1, processors() // neighbours)


def blas_kernels() -> str:
    """Which matrix-product kernels NumPy uses, as ", openblas SkylakeX": their speed is the run's; "" where nothing is known."""
    for library in threadpool_info():
        if library["user_api"] == "blas":
            return f", {library['internal_api']} {library.get('architecture', '')}".rstrip()
    return ""


def make_plan(args: Args, device: Device) -> Plan:
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
        last = None if args.out or args.preset else folder.newest(Path("runs"), folder.LAST)
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


def describe(plan: Plan, device: Device, backend: Backend, workers: Workers, threads: int) -> None:
    """Say what will run and what it needs. Raises ConfigError when the device's memory cannot hold it."""
    model, corpus = plan.model, plan.corpus
    shard_rows, eval_rows = -(-plan.train.batch_size // workers.shards), rows_at_once(workers, plan.train.batch_size, model)
    cost = count(
        model,
        plan.train,
        workers.lead.rows,
        len(workers.own),
        backend.itemsize,
        on_cpu=device.name == "cpu",
        eval_rows=eval_rows * workers.threads if backend.sharded and eval_rows != shard_rows else 0,
    )
    with_threads = f", {threads} thread{'s' * (threads > 1)}{blas_kernels()}" if device.name == "cpu" else ""
    print(f"device   {device.name}: {device.description}{with_threads}" + (f" ({device.reason})" if device.reason else ""))
    print(f"backend  {backend.name}: {backend.description}")
    if workers.shards > 1:
        on_ranks = f" over {workers.ranks.size} ranks" if workers.ranks.size > 1 else ""
        print(f"shards   {workers.shards} of each batch{on_ranks}, gradients summed; {workers.threads} at a time on each rank")
    shape = "" if model.model == "bigram" else f", {model.n_layer} layers, {model.n_head} heads, {model.n_embd} channels"
    print(f"model    {model.model}{shape}, context {model.block_size}: {cost.n_params:,} parameters")
    characters = len(corpus.train) + len(corpus.val)
    dropped = f", {corpus.dropped:,} dropped" if corpus.dropped else ""
    evaluated = evaluated_chars(len(corpus.val), model.block_size, plan.train.val_chars)
    of_val = "all evaluated" if evaluated == len(corpus.val) - 1 else f"{evaluated:,} evaluated in evenly spread windows"
    split = f"{len(corpus.train):,} train; {len(corpus.val):,} val, {of_val}"
    print(f"text     {characters:,} characters ({split}), {model.vocab_size} symbols{dropped}")
    for note in corpus.notes:
        print(f"note     {note}")
    memory = available_bytes(device.xp, workers.threads + 1)  # one more to write checkpoints
    in_use = memory_in_use() if device.name == "cpu" else 0
    peak = in_use + cost.peak_bytes
    of_it = f"{human_bytes(in_use)} of it in use now, " if in_use else ""
    print(f"memory   about {human_bytes(peak)}, {of_it}{human_bytes(cost.cache_bytes)} kept for the backward pass", flush=True)
    if memory is not None and device.name == "cpu":
        memory //= workers.ranks.neighbours
    if memory is not None and peak > memory:
        least, has = in_use + cost.state_bytes, f"the {device.name} has {human_bytes(memory)}"
        if least > memory:
            needs = f"{cost.n_params:,} parameters and their optimizer need about {human_bytes(least)}"
            raise ConfigError(f"n_embd {model.n_embd}: {needs}, {has}; lower --n-embd or --n-layer")
        raise ConfigError(
            f"batch_size {plan.train.batch_size} needs about {human_bytes(peak)}, {has}; lower --batch-size and raise "
            "--gradient-accumulation-steps"
        )


def estimated_time(trainer: Trainer) -> str:
    """From a timed step. An evaluation is forward alone, a third of the work per character."""
    cfg = trainer.train_config

    def step_and_wait() -> None:
        trainer.make_step()
        trainer.read()

    with trainer.undone():
        step = seconds_of(step_and_wait, trainer.workers.mean, warm_up=trainer.workers.lead.warm_up)
    left = max(0, cfg.max_iters - trainer.state.step)
    validated = evaluated_chars(len(trainer.val_data), trainer.model_config.block_size, cfg.val_chars)
    evaluated = validated + cfg.eval_batches * cfg.batch_size * trainer.model_config.block_size
    evaluation = step / 3 * evaluated / trainer.tokens_per_step
    evaluations = -(-left // cfg.eval_interval) + (not trainer.records)
    total = left * step + evaluations * evaluation
    return f"about {human_seconds(total)}: {left} steps of {step:.3g} s, timed here, and evaluations of {evaluation:.2g} s"


def show_sample(trainer: Trainer) -> None:
    """Print some text of the best model of this run; of the last one, with a note, where the best is gone."""
    ops, state = trainer.workers.lead, trainer.state
    try:
        best = checkpoint.load(folder.best_path(trainer.out))
        which, step, flat = "best", best.step, trainer.xp.asarray(best.params)
    except CheckpointError as error:
        console.note(f"{error}")
        which, step, flat = "last", state.step, state.params
    params = state.table.tree(ops.working(flat))
    tokenizer = trainer.corpus.tokenizer
    prompt = trainer.xp.asarray(tokenizer.encode(tokenizer.start))
    tokens = generate(ops, trainer.model, params, prompt, SAMPLE_LENGTH, trainer.model_config, seed=trainer.seed)
    print(f"\n--- {SAMPLE_LENGTH} characters from the {which} model (step {step}) ---")
    print(tokenizer.decode(list(tokens)))
    print("---", flush=True)


if __name__ == "__main__":
    sys.exit(main())
