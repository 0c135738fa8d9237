"""What a run prints before it starts: device, model and text, and the memory and time it will take."""

from threadpoolctl import threadpool_info

from gpt.analysis.cost import Cost, available_bytes, estimate_cost, time_call
from gpt.analysis.format import human_bytes, human_seconds
from gpt.config import ModelConfig
from gpt.errors import ConfigError, TrainingError
from gpt.limits import memory_in_use
from gpt.training.backends import Backend
from gpt.training.data_parallel import Workers
from gpt.training.evaluate import evaluated_chars, rows_per_pass
from gpt.training.run_setup import RunSetup
from gpt.training.trainer import Trainer
from tensorlite import Device
from tensorlite.integers import ceil_div


def describe(setup: RunSetup, device: Device, backend: Backend, workers: Workers, threads: int) -> None:
    """Print what will run and the memory it needs. Raises ConfigError if that is more than the device has."""
    cost = cost_of(setup, device, backend, workers)
    in_use = memory_in_use() if device.name == "cpu" else 0
    facts = [("device", _device(device, threads)), ("backend", f"{backend.name}: {backend.description}")]
    if workers.shards > 1:
        facts.append(("shards", _shards(workers)))
    facts.append(("model", _model(setup.model, cost.n_params)))
    facts.append(("text", _text(setup)))
    facts += [("note", note) for note in setup.corpus.notes]
    facts.append(("memory", _memory(cost, in_use)))
    for label, text in facts:
        print(f"{label:9}{text}", flush=True)
    require_memory(setup, device, workers, cost, in_use)


def cost_of(setup: RunSetup, device: Device, backend: Backend, workers: Workers) -> Cost:
    """Estimate the memory and FLOPs of this process's part of the run."""
    shard_rows = ceil_div(setup.train.batch_size, workers.shards)
    eval_rows = rows_per_pass(workers, setup.train.batch_size, setup.model)
    holds_both = backend.sharded and eval_rows != shard_rows  # its memory pool has separate arrays per shape
    return estimate_cost(
        setup.model,
        setup.train,
        workers.ops.op_table,
        local_shards=len(workers.local_shards),
        itemsize=backend.itemsize,
        on_cpu=device.name == "cpu",
        eval_rows=eval_rows * workers.threads if holds_both else 0,
    )


def require_memory(setup: RunSetup, device: Device, workers: Workers, cost: Cost, in_use: int) -> None:
    """Raise ConfigError if the run needs more memory than the device has. The message names the field to lower."""
    memory = available_bytes(device.xp, workers.threads + 1)  # one more thread writes checkpoints
    if memory is None:
        return
    if device.name == "cpu":
        memory //= workers.ranks.local_size
    has = f"the {device.name} has {human_bytes(memory)}"
    if in_use + cost.state_bytes > memory:
        needs = f"{cost.n_params:,} parameters and their optimizer need about {human_bytes(in_use + cost.state_bytes)}"
        if setup.model.model == "bigram":  # its table has a row and a column per symbol, and nothing else
            raise ConfigError(
                f"data has {setup.model.vocab_size:,} symbols: {needs}, {has}; use a text with fewer, or another --preset"
            )
        raise ConfigError(f"n_embd {setup.model.n_embd}: {needs}, {has}; lower --n-embd or --n-layer")
    if in_use + cost.peak_bytes > memory:
        raise ConfigError(
            f"batch_size {setup.train.batch_size} needs about {human_bytes(in_use + cost.peak_bytes)}, {has}; "
            "lower --batch-size and raise --gradient-accumulation-steps"
        )


def _device(device: Device, threads: int) -> str:
    text = f"{device.name}: {device.description}"
    if device.name == "cpu":
        text += f", {threads} thread{'s' * (threads > 1)}{blas_kernels()}"
    if device.reason:
        text += f" ({device.reason})"
    return text


def blas_kernels() -> str:
    """Return the BLAS kernels that NumPy uses, such as ", openblas SkylakeX": they decide how fast a run is. "": unknown."""
    for library in threadpool_info():
        if library["user_api"] == "blas":
            return f", {library['internal_api']} {library.get('architecture', '')}".rstrip()
    return ""


def _shards(workers: Workers) -> str:
    on_ranks = f" over {workers.ranks.size} ranks" if workers.ranks.size > 1 else ""
    return f"{workers.shards} of each batch{on_ranks}, gradients summed; {workers.threads} at a time on each rank"


def _model(model: ModelConfig, n_params: int) -> str:
    shape: list[str] = [model.model]
    if model.model != "bigram":
        shape += [f"{model.n_layer} layers", f"{model.n_head} heads", f"{model.n_embd} channels"]
    shape.append(f"context {model.block_size}")
    return f"{', '.join(shape)}: {n_params:,} parameters"


def _text(setup: RunSetup) -> str:
    corpus = setup.corpus
    n_train, n_val = len(corpus.train), len(corpus.val)
    evaluated = evaluated_chars(n_val, setup.model.block_size, setup.train.val_chars)
    of_val = "all evaluated" if evaluated == n_val - 1 else f"{evaluated:,} evaluated in evenly spread windows"
    dropped = f", {corpus.dropped:,} dropped" if corpus.dropped else ""
    split = f"{n_train:,} train; {n_val:,} val, {of_val}"
    return f"{n_train + n_val:,} characters ({split}), {setup.model.vocab_size} symbols{dropped}"


def _memory(cost: Cost, in_use: int) -> str:
    of_it = f"{human_bytes(in_use)} of it in use now, " if in_use else ""
    return f"about {human_bytes(in_use + cost.peak_bytes)}, {of_it}{human_bytes(cost.cache_bytes)} saved for the backward pass"


def estimated_time(trainer: Trainer) -> str:
    """Time a step and return how long the run will take. Without a backward pass, an evaluation costs a third per character.

    A step that ends in an error is not timed: the run may be over before it makes that step.
    """
    cfg = trainer.task.train

    def step_and_wait() -> None:
        trainer.train_step()
        trainer.sync()

    try:
        with trainer.rolled_back():
            step_s = time_call(step_and_wait, trainer.workers.mean, warm_up=trainer.workers.ops.warm_up)
    except TrainingError as error:
        return f"not known, because the steps to be timed ended in an error ({error})"
    steps_left = max(0, cfg.max_iters - trainer.state.step)
    val_chars = evaluated_chars(len(trainer.val_data), trainer.task.config.block_size, cfg.val_chars)
    train_chars = cfg.eval_batches * cfg.batch_size * trainer.task.config.block_size
    eval_s = step_s / 3 * (val_chars + train_chars) / trainer.tokens_per_step
    evals_left = ceil_div(steps_left, cfg.eval_interval) + (not trainer.history)
    total_s = steps_left * step_s + evals_left * eval_s
    return f"about {human_seconds(total_s)}: {steps_left} steps of {step_s:.3g} s, timed here, and evaluations of {eval_s:.2g} s"
