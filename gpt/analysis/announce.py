"""What a run prints before it starts: device, model, text, and the memory and time it will take."""

from threadpoolctl import threadpool_info

from gpt.analysis.cost import available_bytes, estimate_cost, time_call
from gpt.analysis.format import human_bytes, human_seconds
from gpt.errors import ConfigError
from gpt.limits import memory_in_use
from gpt.training.backends import Backend
from gpt.training.data_parallel import Workers
from gpt.training.evaluate import evaluated_chars, rows_per_pass
from gpt.training.run_setup import RunSetup
from gpt.training.trainer import Trainer
from tensorlite import Device
from tensorlite.integers import ceil_div


def blas_kernels() -> str:
    """Which BLAS kernels NumPy uses, as ", openblas SkylakeX", since a run is as fast as they are; "" where it is unknown."""
    for library in threadpool_info():
        if library["user_api"] == "blas":
            return f", {library['internal_api']} {library.get('architecture', '')}".rstrip()
    return ""


def describe(setup: RunSetup, device: Device, backend: Backend, workers: Workers, threads: int) -> None:
    """Print what will run and what it needs. Raises ConfigError when the device's memory cannot hold it."""
    model, corpus = setup.model, setup.corpus
    shard_rows, eval_rows = ceil_div(setup.train.batch_size, workers.shards), rows_per_pass(workers, setup.train.batch_size, model)
    cost = estimate_cost(
        model,
        setup.train,
        workers.ops.op_table,
        len(workers.local_shards),
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
    evaluated = evaluated_chars(len(corpus.val), model.block_size, setup.train.val_chars)
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
        memory //= workers.ranks.local_size
    if memory is not None and peak > memory:
        least, has = in_use + cost.state_bytes, f"the {device.name} has {human_bytes(memory)}"
        if least > memory:
            needs = f"{cost.n_params:,} parameters and their optimizer need about {human_bytes(least)}"
            raise ConfigError(f"n_embd {model.n_embd}: {needs}, {has}; lower --n-embd or --n-layer")
        raise ConfigError(
            f"batch_size {setup.train.batch_size} needs about {human_bytes(peak)}, {has}; lower --batch-size and raise "
            "--gradient-accumulation-steps"
        )


def estimated_time(trainer: Trainer) -> str:
    """Estimate the time from a timed step. An evaluation is forward alone, a third of the work per character."""
    cfg = trainer.task.train

    def step_and_wait() -> None:
        trainer.train_step()
        trainer.sync()

    with trainer.rolled_back():
        step = time_call(step_and_wait, trainer.workers.mean, warm_up=trainer.workers.ops.warm_up)
    left = max(0, cfg.max_iters - trainer.state.step)
    validated = evaluated_chars(len(trainer.val_data), trainer.task.config.block_size, cfg.val_chars)
    evaluated = validated + cfg.eval_batches * cfg.batch_size * trainer.task.config.block_size
    evaluation = step / 3 * evaluated / trainer.tokens_per_step
    evaluations = ceil_div(left, cfg.eval_interval) + (not trainer.history)
    total = left * step + evaluations * evaluation
    return f"about {human_seconds(total)}: {left} steps of {step:.3g} s, timed here, and evaluations of {evaluation:.2g} s"
