"""The same training on one device and on eight, whole parameters or split ones."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
_RUN = """
import json, sys, tempfile
from pathlib import Path
import jax, jax.numpy as jnp, optax
from ml_collections import ConfigDict
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from ot_dd import data, models, parallel
from ot_dd.data import AugmentConfig
from ot_dd.stages import networks, prepare
from ot_dd.training import fit, make_state, make_step, restore
from ot_dd.training import students
from ot_dd.training.students import Recipe, train_student
from ot_dd.workdir import WorkDir

parallel.mesh.LEAST_TO_SPLIT = 2**10  # Networks here are small.
key = jax.random.key(0)
images = jax.random.normal(key, (256, 16, 16, 3))
labels = jnp.arange(256) % 4
images = images + 0.5 * labels[:, None, None, None]
module = models.create("convnet", num_classes=4, width=16, depth=2, norm="batch")
variables = module.init(key, images[:2], train=True)
stats = {k: v for k, v in variables.items() if k != "params"}

def loss_fn(params, state, key, data):
    rows = jax.random.randint(key, (64,), 0, len(data[0]))
    x, y = parallel.split((data[0][rows], data[1][rows]))
    logits, state = module.apply(
        {"params": params, **state}, x, train=True, mutable=list(state))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return loss, (state, {})

tx = optax.adam(1e-3)

def fresh():
    params, state = jax.tree.map(jnp.array, (variables["params"], stats))
    return make_state(params, tx, state)

work = WorkDir(Path(tempfile.mkdtemp()))
step_fn = make_step(loss_fn, tx, ema_decay=0.9)
first = work.checkpoints("net")
state, curve = fit(
    "net", fresh(), step_fn, (images, labels), key,
    num_steps=50, checkpoints=first, metrics=work.metrics, chunk=1,
    save_every=25, strategy=sys.argv[2])

# A state is split from its first step to its last; the network that is made is whole.
config = ConfigDict({"seed": 0, "parallel": {"strategy": sys.argv[2]}})
init = lambda key: make_state(module.init(key, images[:2], train=True)["params"], tx)
begun = prepare._fresh(networks.Network(module, init, step_fn, None), config)()
is_split = lambda tree: any(not x.is_fully_replicated for x in jax.tree.leaves(tree))
wanted = jax.device_count() > 1 and sys.argv[2] == "fsdp"
assert is_split(begun.params) == is_split(begun.opt_state) == wanted
close = jax.tree.map(lambda a, b: bool(jnp.allclose(a, b)), begun, init(key))
assert all(jax.tree.leaves(close))
first.finish({})
found = restore(first, fresh, strategy=sys.argv[2])
assert found.opt_state is None and len(found.params["fc"]["kernel"].devices()) == 1
assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found, state))

# Restored whole from parts, or from copies.
first.close()
second = work.checkpoints("net")
again, _ = fit(
    "net", fresh(), step_fn, (images, labels), key,
    num_steps=50, checkpoints=second, metrics=work.metrics,
    strategy="replicate")
second.close()
same = jax.tree.map(lambda a, b: bool((a == b).all()), state.ema, again.ema)
assert all(jax.tree.leaves(same))

# The same from rows that are read while it trains, stopped half-way by the way.
import numpy as np
from ot_dd.data import Stream
from ot_dd.metrics import Stopped
from ot_dd.stages.networks import draw

def streamed_loss(params, state, key, data):
    x, y = draw(key, data, 64)
    logits, state = module.apply(
        {"params": params, **state}, x, train=True, mutable=list(state))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return loss, (state, {})

stream = Stream((np.asarray(images), np.asarray(labels)), 64, 7)
streamed_step = make_step(streamed_loss, tx, ema_decay=0.9)
for name in ("whole", "stopped"):
    work.metrics.stop.clear()
    third = work.checkpoints(name)
    run = lambda: fit(
        name, fresh(), streamed_step, stream, key, num_steps=50, chunk=4,
        checkpoints=third, metrics=work.metrics, strategy=sys.argv[2])
    if name == "stopped":
        work.metrics.stop.set()
        try:
            run()
            raise AssertionError("did not stop")
        except Stopped as stopped:
            assert "step 4" in str(stopped), stopped
        work.metrics.stop.clear()
    end, streamed_curve = run()
    third.close()
    if name == "whole":
        whole_end = end
assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), end, whole_end))

recipe = Recipe(
    labels="soft", steps=50, batch_size=64, optimiser="adamw", learning_rate=1e-3,
    weight_decay=0.01, zeta=2.0, decays=(), ema=0.9, ce_weight=0.1, mse_weight=1.0,
    ot_weight=1.0, kl_weight=0.0, kl_temperature=20.0, temperature=2.0, epsilon=0.1,
    num_iters=20, plan="sinkhorn", evaluations=50, augment=AugmentConfig())
soft = 2 * jax.random.normal(key, (2, 4, 64, 4))
as_bytes = data.to_uint8(images / 4)
class Kept:
    last, saves = None, 0
    def restore(self, example):
        return self.last
    def save(self, progress):
        self.saves += 1
        if self.saves == 40:
            self.last = jax.tree.map(np.array, progress)
kept = Kept()
def student_of(recipe, soft, saved=None):
    return train_student(
        models.create("convnet", num_classes=4, width=16, depth=2), recipe, 2, as_bytes,
        labels, jnp.ones(256), soft, key, key, (as_bytes[None, :64], labels[None, :64]),
        mesh=parallel.local_mesh(), strategy=sys.argv[2], saved=saved)
student = student_of(recipe, soft, kept)
assert students._go_on._cache_size() == 1
again = student_of(recipe, soft, kept)  # The last ten evaluations.
assert kept.saves == 49 + 9
assert students._go_on._cache_size() == 1
assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), student, again))
dsa = student_of(recipe._replace(labels="hard", augment=data.DSA()), None)
print(json.dumps({
    "devices": jax.device_count(), "network": curve["loss"],
    "streamed": streamed_curve["loss"],
    "student": student.loss.tolist(), "transport": student.transport.tolist(),
    "dsa": dsa.loss.tolist()}))
"""


def losses(devices: int, strategy: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(devices), strategy],
        capture_output=True, text=True, timeout=600, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == devices
    return found


@pytest.fixture(scope="module")
def alone():
    return losses(1, "replicate")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["replicate", "fsdp"])
def test_eight_devices_follow_the_curve_of_one(alone, strategy):
    found = losses(8, strategy)
    assert len(alone["network"]) == len(alone["student"]) == 50
    for curve in ("network", "streamed", "student", "transport", "dsa"):
        np.testing.assert_allclose(found[curve], alone[curve], atol=1e-4)
    # It learns, and transport between batches is part of what it learns from.
    assert alone["network"][-1] < 0.5 * alone["network"][0]
    assert alone["streamed"][-1] < 0.5 * alone["streamed"][0]
    assert alone["transport"][-1] != alone["transport"][0]
