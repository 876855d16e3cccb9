"""The memory of linear cross-entropy, in programs as users get them: that of blocks, and what a plan says."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xentjax.losses.linear import Plan, Teacher, explain, linear_cross_entropy

ROWS, DEPTH, BLOCK = 1024, 512, 1024
#: A few blocks: of logits, 4 MiB, of w's columns and of their gradient, 2 each, and the gradient by x, 2. With tangents
#: twice that; the gradient's own derivative is one sum, too, and lies where the result does.
MIB = 2**20
ALLOWED = {"value": 16 * MIB, "value_and_grad": 16 * MIB, "jvp": 32 * MIB, "Hessian-vector product": 32 * MIB}


def compiled(of, v, dtype=jnp.float32):
    labels = np.zeros(ROWS, np.int32)
    plan = Plan("recompute", BLOCK)
    loss = lambda x, w: linear_cross_entropy(x, w, labels, reduction="sum", implementation=plan)
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in ((ROWS, DEPTH), (DEPTH, v))]
    return jax.jit(of(loss)).lower(*arrays, *arrays).compile()


def along(function):
    return lambda x, w, *tangents: jax.jvp(function, (x, w), tangents)[1]


MODES = {
    "value": lambda loss: lambda x, w, *tangents: loss(x, w),
    "value_and_grad": lambda loss: lambda x, w, *tangents: jax.value_and_grad(loss, (0, 1))(x, w),
    "jvp": along,
    "Hessian-vector product": lambda loss: along(jax.grad(loss, (0, 1))),
}


@pytest.mark.parametrize("mode", MODES)
def test_temporary_memory_is_that_of_blocks(mode):
    """At V = 50257, which they do not divide, as at V = 20000; and no array of N x V."""
    for dtype in (jnp.float32, jnp.bfloat16):
        program = compiled(MODES[mode], 50257, dtype)
        taken = program.memory_analysis().temp_size_in_bytes
        assert taken <= ALLOWED[mode], (dtype, taken / 2**20)
        text = program.as_text()
        assert not re.search(rf"\[{ROWS},50257\]|\[50257,{ROWS}\]", text)
        if mode == "value_and_grad":
            # Neither padded, nor copied, nor widened outside of a loop over some of it.
            assert not re.search(rf"= \w+\[{DEPTH},50257\]\S* (copy|pad|transpose|dot)\(", text)
            assert not re.search(rf"= f32\[{DEPTH},50257\]\S* fusion\(", text) or dtype == jnp.float32
    if mode == "value_and_grad":
        # Where blocks do not divide the vocabulary either, and of float32 as above.
        taken, other = (compiled(MODES[mode], v).memory_analysis().temp_size_in_bytes for v in (50257, 20000))
        assert abs(other - taken) <= 0.01 * taken


@pytest.mark.parametrize("options", [{"reduction": "none"}, {"outputs": ("loss", "entropy")}], ids=str)
def test_not_all_logits_are_stored_unless_they_are_few(options):
    """Whatever the gradients take: nobody asked for arrays of N x V."""
    shape = jax.ShapeDtypeStruct
    large = shape((8192, 4096), jnp.bfloat16), shape((4096, 128256), jnp.bfloat16), shape((8192,), jnp.int32)
    assert explain(*large, **options).strategy == "recompute"
    assert explain(*large, memory_budget=2**34, **options).strategy == "dense"
    few = shape((512, 64), jnp.float32), shape((64, 5000), jnp.float32), shape((512,), jnp.int32)
    assert explain(*few, **options).strategy == "dense"


@pytest.mark.parametrize("asked", [None, "recompute", "gradient_in_forward", Plan("recompute", 512)], ids=str)
def test_a_budget_is_kept_to_with_a_teacher(asked):
    """Whose matrix may be the larger one."""
    n, d, features, v, budget = 512, 32, 2048, 20000, 24 * MIB
    x, w = jax.ShapeDtypeStruct((n, d), jnp.float32), jax.ShapeDtypeStruct((d, v), jnp.float32)
    teacher = Teacher(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n, features), (features, v))))
    options = {"reduction": "mean", "memory_budget": budget, "implementation": asked}
    found = explain(x, w, teacher, **options)
    own = explain(x, w, jax.ShapeDtypeStruct((n,), jnp.int32), **options)
    # As its logits are computed twice for the loss, and again for the gradient.
    assert found.forward_flop - own.forward_flop == 2 * 2 * n * features * v
    assert found.backward_flop - own.backward_flop == 2 * n * features * v
    gradients = jax.value_and_grad(lambda x, w, teacher: linear_cross_entropy(x, w, teacher, **options), (0, 1))
    taken = jax.jit(gradients).lower(x, w, teacher).compile().memory_analysis().temp_size_in_bytes
    assert taken <= found.temporary_bytes <= budget


def test_a_plan_beyond_the_budget_is_refused():
    x, w = jax.ShapeDtypeStruct((1024, 64), jnp.float32), jax.ShapeDtypeStruct((64, 50000), jnp.float32)
    with pytest.raises(ValueError, match=r"memory_budget is 1048576 bytes, but dense needs \d+ at least"):
        explain(x, w, outputs="entropy", memory_budget=2**20, implementation=Plan("dense"))
