import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ot_dd import losses


def test_student_loss_by_hand():
    student = jnp.array([[0.0, 0.0], [0.0, 0.0]])
    soft = jnp.array([[1.0, -1.0], [2.0, 0.0]])
    labels = jnp.array([0, 1])
    # CE of equal logits is log 2; MSE is (1 + 1 + 4 + 0) / 4.
    ce, mse = np.log(2.0), 1.5
    loss = losses.student_loss(
        student, soft, labels, ce_weight=0.5, mse_weight=2.0, ot_weight=0.0
    )
    np.testing.assert_allclose(loss, 0.5 * ce + 2.0 * mse, rtol=1e-6)
    # p = (.5, .5) in both rows, so any plan costs the mean of |.5 - q_j|_1 over j.
    q = np.array([1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(-1.0))])
    expected = np.mean(2 * np.abs(0.5 - q))
    matched = losses.logit_matching(student, soft)
    np.testing.assert_allclose(matched, expected, rtol=1e-5)
    whole = losses.student_loss(student, soft, labels, ot_weight=3.0)
    np.testing.assert_allclose(whole, 0.025 * ce + mse + 3 * expected, rtol=1e-5)


def test_logit_matching_follows_sinkd():
    """The published loop, written in numpy: kernel, row and column sums, <P, W>."""
    rng = np.random.default_rng(0)
    student, soft = rng.normal(size=(2, 8, 5)) * 2

    def softmax(z):
        e = np.exp(z / 2 - (z / 2).max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    cost = np.abs(softmax(student)[:, None] - softmax(soft)[None]).sum(-1)
    plan = np.exp(-cost / 0.1)
    for _ in range(20):
        plan /= plan.sum(1, keepdims=True)
        plan /= plan.sum(0, keepdims=True)
    found = losses.logit_matching(
        jnp.asarray(student), jnp.asarray(soft), reduction="sum"
    )
    np.testing.assert_allclose(found, (plan * cost).sum(), rtol=1e-4)


def test_gradient_goes_to_the_student_alone():
    rng = np.random.default_rng(0)
    student, soft = jnp.asarray(rng.normal(size=(2, 8, 5)), jnp.float32)
    gradients = jax.jit(jax.grad(losses.logit_matching, argnums=(0, 1)))(student, soft)
    assert float(jnp.abs(gradients[0]).max()) > 1e-4
    np.testing.assert_allclose(gradients[1], 0.0)


def test_identity_plan_is_never_cheaper():
    rng = np.random.default_rng(0)
    student, soft = jnp.asarray(rng.normal(size=(2, 8, 5)), jnp.float32)
    identity = losses.logit_matching(student, soft, plan="identity")
    transport = losses.logit_matching(student, soft, epsilon=0.01, num_iters=300)
    assert float(transport) < float(identity)
    q = jax.nn.softmax(soft / 2)
    expected = jnp.abs(jax.nn.softmax(student / 2) - q).sum(-1).mean()
    np.testing.assert_allclose(identity, expected, rtol=1e-6)


def test_unknown_names():
    with pytest.raises(ValueError, match="reduction"):
        losses.logit_matching(jnp.ones((2, 2)), jnp.ones((2, 2)), reduction="max")
    with pytest.raises(ValueError, match="plan"):
        losses.logit_matching(jnp.ones((2, 2)), jnp.ones((2, 2)), plan="no")


def logits(n=8, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(2, n, classes)) * 2, jnp.float32)


FUNCTIONS = {
    "logit_matching": losses.logit_matching,
    "identity": lambda *v, **k: losses.logit_matching(*v, plan="identity", **k),
    "soft_label_kl": lambda *v, **k: losses.soft_label_kl(*v, temperature=3.0, **k),
    "logit_mse": losses.logit_mse,
    "student_loss": lambda s, t, **k: losses.student_loss(
        s, t, jnp.arange(len(s)) % 5, **k
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_masked_examples_take_no_part(name):
    loss = jax.jit(FUNCTIONS[name], static_argnames="reduction")
    student, soft = logits()
    where = jnp.arange(8) < 5
    whole = loss(student[:5], soft[:5])
    np.testing.assert_allclose(loss(student, soft, where=where), whole, rtol=1e-5)
    # Numbers are no weights: what is not zero counts.
    np.testing.assert_allclose(loss(student, soft, where=where * 0.5), whole, rtol=1e-5)
    each = loss(student, soft, where=where, reduction="none")
    assert each.shape == (8,)
    np.testing.assert_allclose(each[5:], 0.0)
    np.testing.assert_allclose(each.sum() / 5, whole, rtol=1e-5)
    total = loss(student[:5], soft[:5], reduction="sum")
    np.testing.assert_allclose(total, 5 * whole, rtol=1e-5)
    gradient = jax.grad(lambda s: loss(s, soft, where=where))(student)
    expected = jax.grad(lambda s: loss(s, soft[:5]))(student[:5])
    np.testing.assert_allclose(gradient[:5], expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(gradient[5:], 0.0)


def test_a_student_loss_without_terms_has_the_shape_of_one_with():
    student, soft = logits()
    none = {"ce_weight": 0.0, "mse_weight": 0.0, "ot_weight": 0.0}
    for reduction, shape in {"none": (8,), "sum": (), "mean": ()}.items():
        loss = losses.student_loss(
            student, soft, jnp.arange(8) % 5, reduction=reduction, **none
        )
        assert loss.shape == shape and not loss.any()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_not_even_a_nan_of_a_masked_example_reaches_the_gradient(name):
    student, soft = logits()
    where = jnp.arange(8) < 5
    loss = FUNCTIONS[name]
    broken = student.at[6].set(jnp.nan), soft.at[7].set(jnp.inf)
    gradient = jax.grad(lambda s: loss(s, broken[1], where=where))(broken[0])
    expected = jax.grad(lambda s: loss(s, soft, where=where))(student)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_weights_and_epsilon_may_be_traced():
    student, soft = logits()
    labels = jnp.arange(8) % 5

    def loss(weight, epsilon):
        weights = {"ce_weight": weight, "mse_weight": weight, "kl_weight": weight}
        return losses.student_loss(
            student, soft, labels, ot_weight=weight, epsilon=epsilon, **weights
        )

    found = jax.jit(loss)(0.3, 0.1)
    np.testing.assert_allclose(found, loss(0.3, 0.1), rtol=1e-4)
    np.testing.assert_allclose(jax.jit(loss)(0.0, 0.1), 0.0)


def test_a_distance_without_gradients_has_none():
    student, soft = logits()
    value, gradient = jax.value_and_grad(
        lambda s: losses.logit_matching(s, soft, grad="none")
    )(student)
    assert not np.any(gradient)
    np.testing.assert_allclose(value, losses.logit_matching(student, soft), rtol=1e-6)


def test_a_class_that_the_teachers_rule_out_costs_nothing():
    student, soft = logits()
    ruled_out = soft.at[:, 0].set(-jnp.inf)
    found = losses.soft_label_kl(student, ruled_out)
    low = losses.soft_label_kl(student, soft.at[:, 0].set(-1e4))
    np.testing.assert_allclose(found, low, rtol=1e-5)
    gradient = jax.grad(losses.soft_label_kl)(student, ruled_out)
    assert np.isfinite(gradient).all()


def test_hessian_vector_products():
    """Forward over reverse, against reverse over reverse."""
    student, soft = logits()
    direction = logits(seed=1)[0]
    labels = jnp.arange(8) % 5
    gradient = jax.grad(lambda s: losses.student_loss(s, soft, labels, ot_weight=2.0))
    _, found = jax.jvp(gradient, (student,), (direction,))
    expected = jax.grad(lambda s: jnp.vdot(gradient(s), direction))(student)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_kl_and_mse_against_torch():
    import torch

    student, soft = logits()
    s, t = (torch.tensor(np.asarray(v)) for v in (student, soft))
    expected = 9.0 * torch.nn.functional.kl_div(
        torch.log_softmax(s / 3, 1), torch.log_softmax(t / 3, 1),
        reduction="batchmean", log_target=True,
    )  # fmt: skip
    found = losses.soft_label_kl(student, soft, temperature=3.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    expected = torch.nn.functional.mse_loss(s, t)
    np.testing.assert_allclose(losses.logit_mse(student, soft), expected, rtol=1e-6)


def test_groups_match_within_themselves():
    student, soft = logits(12)
    found = losses.logit_matching(student, soft, groups=3)
    shares = [
        losses.logit_matching(student[i : i + 4], soft[i : i + 4]) for i in (0, 4, 8)
    ]
    np.testing.assert_allclose(found, np.mean(shares), rtol=1e-5)
    whole = losses.logit_matching(student, soft)
    assert abs(float(whole) - float(found)) > 1e-3
    with pytest.raises(ValueError, match="groups must divide the batch of 12"):
        losses.logit_matching(student, soft, groups=5)


def test_bfloat16_logits_are_matched_in_float32():
    student, soft = (v.astype(jnp.bfloat16) for v in logits())
    found = losses.logit_matching(student, soft)
    expected = losses.logit_matching(*(v.astype(jnp.float32) for v in (student, soft)))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_shapes_that_disagree():
    with pytest.raises(ValueError, match="must be \\[n, classes\\] alike"):
        losses.logit_matching(jnp.ones((2, 3)), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="where must be"):
        losses.logit_mse(jnp.ones((2, 3)), jnp.ones((2, 3)), where=jnp.ones(3))


@pytest.mark.parametrize("loss", [losses.logit_matching, losses.soft_label_kl])
def test_a_temperature_of_zero_is_refused(loss):
    with pytest.raises(ValueError, match="temperature must be above 0, found 0"):
        loss(jnp.ones((2, 3)), jnp.ones((2, 3)), temperature=0)


def test_constants_of_a_program_may_be_arrays():
    student, soft = logits()
    temperature, epsilon = jnp.float32(2.0), jnp.float32(0.1)
    matched = jax.jit(
        lambda s, t: losses.logit_matching(
            s, t, temperature=temperature, epsilon=epsilon
        )
    )(student, soft)
    np.testing.assert_allclose(matched, losses.logit_matching(student, soft), rtol=1e-6)


def test_called_eagerly_it_is_compiled_once():
    student, soft = logits()
    options = {"num_iters": 3}
    losses.logit_matching(student, soft, **options)
    jax.grad(losses.logit_matching)(student, soft, **options)
    compiled = []

    def listen(name, seconds, **_):
        if "backend_compile" in name:
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    losses.logit_matching(student, soft, **options)
    jax.grad(losses.logit_matching)(student, soft, **options)
    jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled
