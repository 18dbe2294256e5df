"""The baseline MinimaxDiffusion: the denoiser, fine-tuned to cover and to spread."""

import jax
import jax.numpy as jnp
import optax

from ot_dd.baselines import minimax_loss, remember
from ot_dd.config import ConfigError, fingerprint
from ot_dd.data import Stored
from ot_dd.stages.artifacts import Prepared
from ot_dd.stages.networks import denoising_loss, draw
from ot_dd.stages.prepare import train_network
from ot_dd.training import make_state, make_step
from ot_dd.workdir import WorkDir

MEMORY = 64  # Latents of a class on either side, as the authors'.
# The authors fine-tune DiT-XL/2's biases, norms and scales for 8 epochs at 1e-3. Small
# networks have all their weights fine-tuned: a fifth of their steps, a tenth of the rate.
SHARE_OF_STEPS, SHARE_OF_RATE = 0.2, 0.1


def fine_tuned(config, workdir: WorkDir, prepared: Prepared) -> Prepared:
    """Returns `prepared` with the denoiser fine-tuned by the minimax criteria.

    Args:
      config: the whole config; `denoiser` matters.
      workdir: where the fine-tuned network is kept; an interrupted run goes on.
      prepared: networks and real latents.
    """
    settings, denoiser = config.denoiser, prepared.denoiser
    if isinstance(prepared.latents, Stored):
        raise ConfigError(
            "the baseline minimax needs all latents on the device: raise "
            "config.data.in_memory_gb, or leave it out of config.study.baselines"
        )
    steps = max(1, round(SHARE_OF_STEPS * settings.steps))
    rate = SHARE_OF_RATE * settings.learning_rate
    recipe = settings.batch_size, settings.ema, settings.label_dropout, settings.dtype
    if denoiser.class_ids:
        recipe += (denoiser.class_ids,)
    key = fingerprint(prepared.denoiser_key, "minimax", MEMORY, steps, rate, recipe)
    labels = jnp.asarray(prepared.dataset.train.labels)
    order = jnp.argsort(labels)
    counts = jnp.bincount(labels, length=denoiser.num_classes)
    first = jnp.cumsum(counts) - counts
    denoise = denoising_loss(
        settings, denoiser.module, denoiser.num_classes, denoiser.class_ids
    )
    size = prepared.latents[0].size

    def loss_fn(params, state, key, data):
        latents, labels, order, first, counts = data
        pick, other, *keys = jax.random.split(key, 5)
        x0, classes = draw(pick, (latents, labels), settings.batch_size)
        loss, predicted = denoise(params, keys, x0, classes)
        predicted = predicted.reshape(-1, size)
        rows = jax.random.uniform(other, (len(classes), MEMORY))
        rows = jnp.floor(rows * counts[classes, None]).astype(jnp.int32)
        real = latents[order[first[classes, None] + rows]].reshape(*rows.shape, size)
        filled = jnp.arange(MEMORY) < state["count"][classes, None]
        added = minimax_loss(predicted, real, state["memory"][classes], filled)
        memory, count = remember(
            state["memory"], state["count"], jax.lax.stop_gradient(predicted), classes
        )
        return (loss + added).mean(), ({"memory": memory, "count": count}, {})

    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))
    step_fn = make_step(loss_fn, tx, ema_decay=settings.ema)
    memory = {
        "memory": jnp.zeros((denoiser.num_classes, MEMORY, size)),
        "count": jnp.zeros(denoiser.num_classes, jnp.int32),
    }
    settings = settings.copy_and_resolve_references()
    settings.steps = steps
    with workdir.turn(f"minimax-{key}"):
        state, _ = train_network(
            "minimax", key, settings, workdir,
            lambda: make_state(denoiser.params, tx, memory),
            step_fn, (prepared.latents, labels, order, first, counts), config.seed + 5,
            lambda state: {}, config.parallel.strategy,
        )  # fmt: skip
    return prepared._replace(
        denoiser=denoiser.replace(params=state.ema), denoiser_key=key
    )
