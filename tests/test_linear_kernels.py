"""The kernels for Hopper GPUs and for TPUs: interpreted, against float64 and against XLA."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xentjax.losses.linear import Plan, explain, linear_cross_entropy
from xentjax.losses.linear.vocabulary import Block, Walk

if jax.__version_info__ < (0, 12):
    pytest.skip("the kernels need jax 0.12 or later", allow_module_level=True)

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.experimental.pallas.tpu as pltpu

from xentjax.losses.linear import gpu_kernels, gpu_tiles, kernels, slopes, statistics, tpu_kernels

#: Of one step, and of as many as there are stages; the least that the tensor cores take.
TILES = gpu_kernels.Tiles(rows=64, columns=128, stages=2)
#: Several of each, of the fewest rows and columns of which there are several in the problems here.
ON_TPU = tpu_kernels.Tiles(rows=16, turns=2, columns=256)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Small tiles, on two multiprocessors."""
    monkeypatch.setattr(gpu_tiles, "_multiprocessors", lambda: 2)
    for name in ("FOR_STATISTICS", "FOR_PRODUCTS", "FOR_SPREAD", "FOR_DLOGITS"):
        monkeypatch.setattr(gpu_kernels, name, TILES)
    monkeypatch.setattr(tpu_kernels.Tiles, "of", lambda *sizes: ON_TPU)


@dataclasses.dataclass(frozen=True)
class Device:
    """A device's kernels: ``name`` as JAX compiles for it, the module, the kernel of statistics and its tiles, a
    context that interprets them, and the columns of each part of a row of so many."""

    name: str
    rows: object
    kernel: object
    context: object
    parts: object

    def __str__(self):
        return self.name


def _tiles(v):
    return [np.arange(first, min(first + TILES.columns, v)) for first in range(0, v, TILES.columns)]


def _lanes(v):
    return [np.arange(lane, v, 128) for lane in range(128)]


GPU = Device(
    "cuda",
    gpu_kernels.rows,
    functools.partial(gpu_kernels.tile_statistics, tiles=TILES),
    lambda: plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)),
    _tiles,
)
TPU = Device(
    "tpu",
    tpu_kernels.rows,
    functools.partial(tpu_kernels.lane_statistics, tiles=ON_TPU),
    lambda: pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(detect_races=True)),
    _lanes,
)
on_each_device = pytest.mark.parametrize("device", [GPU, TPU], ids=str)


def interpreted(device, function, *arguments):
    """The kernels as they run on the device, copies in the background included; an error where two of them race."""
    with device.context():
        return jax.tree.map(np.asarray, jax.jit(function)(*arguments))


@functools.cache
def drawn(n, d, v, dtype=jnp.bfloat16, scale=1.0):
    """x, w, labels, and the logits in float64; the first label is the last class, the second one is none."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((n, d)), dtype)
    w = jnp.asarray(rng.standard_normal((d, v)) * scale / np.sqrt(d), dtype)
    labels = rng.integers(0, v, n).astype(np.int32)
    labels[:2] = v - 1, -1
    return x, w, jnp.asarray(labels), np.asarray(x, np.float64) @ np.asarray(w, np.float64)


def in_layout(w, layout):
    return w if layout == "dv" else w.T


# -- the kernels by themselves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "sizes", "layout", "dtype"),
    [
        (GPU, (128, 128, 256), "dv", "bfloat16"),
        (GPU, (136, 192, 320), "dv", "float16"),
        (GPU, (72, 192, 320), "vd", "bfloat16"),
        (TPU, (64, 128, 512), "dv", "bfloat16"),
        (TPU, (37, 256, 384), "dv", "float32"),
        (TPU, (72, 128, 323), "dv", "bfloat16"),
        (TPU, (2, 128, 71), "vd", "bfloat16"),
        (TPU, (37, 128, 391), "vd", "float32"),
    ],
    ids=str,
)
def test_statistics_of_parts(device, sizes, layout, dtype):
    """Tiles that are whole, and partial ones of rows and columns."""
    x, w, labels, u = drawn(*sizes, dtype)
    n, _, v = sizes
    function = functools.partial(device.kernel, layout=layout, spread=True, products=True)
    found = interpreted(device, function, x, in_layout(w, layout), labels, jnp.int32(v))
    np.testing.assert_allclose(found["products"], u, atol=1e-5)
    compare_parts(found, u, device.parts(v))
    at = np.where(labels >= 0, u[np.arange(n), labels], 0)
    np.testing.assert_allclose(found["at"].sum(axis=0), at, atol=1e-5)
    assert np.all((found["at"] != 0).sum(axis=0) == (np.asarray(labels) >= 0))
    # The label's logit is the very number that the maximum is.
    largest = jnp.argmax(found["products"], axis=1).astype(jnp.int32)
    largest = interpreted(device, function, x, in_layout(w, layout), largest, jnp.int32(v))
    np.testing.assert_array_equal(largest["at"].sum(axis=0), largest["maximum"].max(axis=0))


def compare_parts(found, u, parts):
    """The statistics of some columns each, of none too."""
    for j, columns in enumerate(parts):
        part = u[:, columns]
        assert found["counted"][j] == len(columns)
        if len(columns) == 0:
            np.testing.assert_array_equal(found["maximum"][j], -np.inf)
            np.testing.assert_array_equal(found["spread"][j], 0)
            continue
        maximum = part.max(axis=1)
        np.testing.assert_allclose(found["maximum"][j], maximum, atol=1e-5)
        rest = np.sort(np.exp(part - maximum[:, None]), axis=1)[:, :-1].sum(axis=1)
        np.testing.assert_allclose(found["rest"][j], rest, rtol=1e-5, atol=1e-7)
        spread = (maximum[:, None] - part).sum(axis=1)
        np.testing.assert_allclose(found["spread"][j], spread, rtol=1e-5, atol=1e-6)


@on_each_device
@pytest.mark.parametrize("columns", [129, 128, 0])
def test_columns_that_do_not_count(device, columns):
    """Whole tiles of them and parts; whatever they hold."""
    x, w, labels, u = drawn(72, 128, 320)
    bad = w.at[:, columns:].set(jnp.nan)
    labels = jnp.where(labels < columns, labels, -1)
    found = interpreted(device, lambda: device.kernel(x, bad, labels, jnp.int32(columns), layout="dv", spread=True))
    compare_parts(found, u, [part[part < columns] for part in device.parts(320)])


@on_each_device
def test_ties(device):
    """Each of equal largest logits but one counts."""
    v = 320
    x, w = jnp.ones((16, 128), jnp.bfloat16), jnp.zeros((128, v), jnp.bfloat16).at[0, ::64].set(-1.0)
    found = interpreted(device, lambda: device.rows(walk_over(v), arrays_of(x, w, jnp.zeros(16, jnp.int32)), ()))
    np.testing.assert_array_equal(found["maximum"], 0)
    np.testing.assert_allclose(found["rest"], v - 5 - 1 + 5 * np.exp(-1), rtol=1e-6)


@pytest.mark.parametrize(
    ("start", "fresh", "layout"),
    [(0, (0, 192), "dv"), (128, (64, 192), "dv"), (128, (0, 150), "vd"), (64, (5, 5), "dv")],
    ids=str,
)
def test_dlogits(start, fresh, layout):
    """Blocks that begin anywhere, of which some columns are not fresh; a label among those and one elsewhere."""
    n, v, columns = 72, 320, 192
    x, w, labels, u = drawn(n, 128, v)
    rng = np.random.default_rng(1)
    maximum, log_total = u.max(axis=1), np.log(np.exp(u - u.max(axis=1, keepdims=True)).sum(axis=1))
    row = {name: rng.standard_normal(n) for name in ("scale", "scale_at", "at", "shift")}
    row |= {"maximum": maximum, "log_total": log_total}
    row = {name: np.float32(value) for name, value in row.items()}
    place = np.asarray(labels) - start
    row["label"] = np.where((place >= fresh[0]) & (place < fresh[1]), place, -1).astype(np.int32)
    row["is_lost"] = rng.integers(0, 4, n) == 0

    found = interpreted(
        GPU,
        lambda start, fresh: gpu_kernels.dlogits(
            x, in_layout(w, layout), start, fresh, row, columns=columns, layout=layout, tiles=TILES
        ),
        jnp.int32(start),
        jnp.asarray(fresh, jnp.int32),
    )
    column = np.arange(columns)
    p = np.exp(u - maximum[:, None] - log_total[:, None])[:, start : start + columns]
    of_row = {name: np.float64(value)[:, None] for name, value in row.items()}
    g = np.where(column == of_row["label"], p * of_row["scale_at"] + of_row["at"], p * of_row["scale"])
    counts = (column >= fresh[0]) & (column < fresh[1]) & (of_row["is_lost"] == 0)
    expected = np.where(counts, g + of_row["shift"], 0)
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=2**-8, atol=1e-7)
    assert found.dtype == x.dtype


# -- in the walk over the vocabulary -----------------------------------------------------------------------------------


def walk_over(v, layout="dv", block=0, classes=0):
    return Walk(v, classes or v, block or v, layout, kernels="mosaic")


def arrays_of(x, w, labels, layout="dv"):
    is_class = (labels >= 0) & (labels < w.shape[1])
    return {"x": x, "w": in_layout(w, layout), "labels": labels[:, None], "is_class": is_class[:, None]}


@on_each_device
@pytest.mark.parametrize(("scale", "classes"), [(0.0, 0), (0.1, 300), (1.0, 0), (30.0, 300)])
def test_rows(device, scale, classes):
    """What all tiles leave of each row is what XLA's walk leaves."""
    x, w, labels, u = drawn(72, 128, 320, scale=scale)
    u = u[:, : classes or 320]
    labels = jnp.where(labels < u.shape[1], labels, -1)
    walk, arrays = walk_over(320, classes=classes), arrays_of(x, w, labels)
    heads = ("gap", "uniform", "known")
    twin = dict(statistics._walked(walk, arrays, heads, 0, ""))
    found = interpreted(device, lambda: device.rows(walk, arrays, heads))
    assert {n: (a.shape, a.dtype) for n, a in found.items()} == {n: (a.shape, a.dtype) for n, a in twin.items()}
    # Of padding, products may be anything.
    found["known"], twin["known"] = (of["known"][:, : u.shape[1]] for of in (found, twin))
    for name in ("maximum", "at", "known"):
        np.testing.assert_allclose(found[name], twin[name], rtol=2e-6, atol=2e-6 * max(scale, 1))
    maximum = u.max(axis=1)
    rest = np.sort(np.exp(u - maximum[:, None]), axis=1)[:, :-1].sum(axis=1)
    # Logits are rounded once, as they are added up: in float32, of about their size.
    np.testing.assert_allclose(found["rest"], rest, rtol=2e-6 + 4e-6 * scale)
    spread = (maximum[:, None] - u).sum(axis=1)
    level = found["reference"] - maximum
    np.testing.assert_allclose(found["uniform"], spread + level * u.shape[1], rtol=1e-5, atol=1e-5)
    if scale == 0:
        np.testing.assert_array_equal(found["rest"], u.shape[1] - 1)


@on_each_device
def test_confident_rows(device):
    """One class far above the others: the rest keeps all of its digits, wherever the class is."""
    d, v = 128, 320
    w = jnp.zeros((d, v), jnp.bfloat16).at[0].set(-70.0)
    classes = jnp.asarray([0, 127, 128, 319, 200, 64, 255, 256] * 16)
    w = w.at[1 + jnp.arange(8), classes[:8]].set(jnp.bfloat16(70.0))
    x = jnp.zeros((128, d), jnp.bfloat16).at[:, 0].set(1.0).at[jnp.arange(128), 1 + jnp.arange(128) % 8].set(1.0)
    walk, arrays = walk_over(v), arrays_of(x, w, classes)
    found = interpreted(device, lambda: device.rows(walk, arrays, ("gap",)))
    np.testing.assert_array_equal(found["maximum"], 0)
    np.testing.assert_array_equal(found["at"][:, 0], 0)
    np.testing.assert_allclose(found["rest"], (v - 1) * np.exp(-70.0), rtol=1e-6)


@on_each_device
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite(device, value):
    """One, several of them, in a part or two, and rows of nothing else end as in XLA's walk."""
    x, w, labels, _ = drawn(72, 128, 320)
    x = jnp.abs(x)
    for columns in (5, [5, 133], [5, 300], slice(None)):
        arrays = arrays_of(x, w.at[3, columns].set(value), labels)
        walk, heads = walk_over(320), ("gap",)
        twin = statistics._finished(walk, arrays, statistics._walked(walk, arrays, heads, 0, ""), heads)
        found = interpreted(device, lambda: device.rows(walk, arrays, heads))  # noqa: B023
        found = statistics._finished(walk, arrays, found, heads)
        # The maximum of a row with a NaN is any number.
        for state in (twin, found):
            state["maximum"] += state["log_total"]
        for name, own in twin.items():
            np.testing.assert_allclose(found[name], own, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("options", ["label", "uniform", "lost", "no label"])
def test_cotangents_of_block(options):
    """dlogits of a block that an earlier one has a part of are XLA's."""
    n, v = 72, 320
    x, w, labels, u = drawn(n, 128, v, scale=10.0)
    labels = jnp.where(jnp.arange(n) % 2 == 0, np.argmax(u, axis=1), labels)
    walk, arrays = walk_over(v, block=192), arrays_of(x, w, labels)
    block = Block(jnp.int32(128), jnp.int32(128), jnp.int32(192), jnp.arange(192) >= 64)
    maximum, total = u.max(axis=1), np.exp(u - u.max(axis=1, keepdims=True)).sum(axis=1)
    residuals = {"maximum": jnp.float32(maximum), "log_total": jnp.float32(np.log(total))}
    rng = np.random.default_rng(2)
    cotangents = {"mean": jnp.float32(rng.standard_normal(n))}
    if options != "no label":
        p = np.exp(u[np.arange(n), labels] - maximum) / total
        dominant = jnp.where((labels >= 0) & (p > 0.5), labels, -1)
        assert 0 < np.sum(dominant >= 192) < n
        residuals |= {"columns": labels[:, None], "dominant": dominant}
        cotangents["at"] = jnp.float32(rng.standard_normal((n, 1)))
    if options == "uniform":
        residuals["uniform"] = residuals["log_total"]
        cotangents |= {name: jnp.float32(rng.standard_normal(n)) for name in ("uniform", "weights")}
    if options == "lost":
        residuals["is_lost"] = jnp.asarray(rng.integers(0, 3, n) == 0)
        cotangents = jax.tree.map(
            lambda c: jnp.where(residuals["is_lost"].reshape(-1, *[1] * (c.ndim - 1)), 0, c), cotangents
        )
    twin = np.float32(slopes._dlogits(walk, arrays, residuals, block, cotangents))
    found = interpreted(GPU, lambda: gpu_kernels.cotangents_of_block(walk, arrays, residuals, block, cotangents))
    found = found.astype(np.float32)
    np.testing.assert_allclose(found, twin, rtol=2**-7, atol=1e-6)
    assert not np.any(found[:, :64])


# -- the whole function ------------------------------------------------------------------------------------------------


PLANS = [Plan("recompute", 192), Plan("gradient_in_forward", 320, 40), Plan("dense")]
NAMED = lambda value: getattr(value, "strategy", str(value))
OPTIONS = {"label_smoothing": 0.1, "z_loss": 1e-3, "ignore_index": 7, "reduction": "mean"}


def with_kernels(plan):
    return dataclasses.replace(plan, kernels="mosaic")


@pytest.fixture
def kernels_run(device, monkeypatch):
    """Which kernels ran, as those of the device do: none is compiled, as their interpreters run in no loop of XLA's."""
    by_platform, run = jax.lax.platform_dependent, []

    def chosen(*arguments, default, **others):
        by_kernels = {getattr(function, "func", None) for function in others.values()}
        if not by_kernels & {GPU.rows, TPU.rows, gpu_kernels.cotangents_of_block}:
            return by_platform(*arguments, default=default, **others)
        kernel = others.get(device.name, default)
        run.append(kernel.func)
        return kernel(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", chosen)
    with jax.disable_jit():
        yield run


@pytest.mark.parametrize(
    ("device", "plan", "dtype"),
    [
        *((device, plan, "bfloat16") for device in (GPU, TPU) for plan in PLANS),
        (GPU, PLANS[0], "float16"),
        (TPU, PLANS[0], "float32"),
    ],
    ids=NAMED,
)
def test_gradients(device, plan, dtype, kernels_run):
    """Value and gradients are XLA's, to a rounding of what is in 16 bits."""
    x, w, labels, _ = drawn(80, 128, 320, dtype)
    labels = jnp.maximum(labels, 7)

    def value_and_grad(plan):
        loss = functools.partial(linear_cross_entropy, labels=labels, implementation=plan, **OPTIONS)
        return lambda: jax.value_and_grad(loss, (0, 1))(x, w)

    expected, slopes = value_and_grad(plan)()
    assert explain(x, w, labels, implementation=with_kernels(plan), **OPTIONS).kernels == "mosaic"
    found, got = interpreted(device, value_and_grad(with_kernels(plan)))
    assert device.rows in kernels_run
    eps = max(float(jnp.finfo(dtype).eps), 1e-6)
    np.testing.assert_allclose(np.float32(found), np.float32(expected), rtol=eps)
    for one, other in zip(got, slopes, strict=True):
        np.testing.assert_allclose(np.float32(one), np.float32(other), atol=2 * eps * np.abs(np.float32(other)).max())


def _hessian_product(f):
    return lambda x, w: jax.jvp(jax.grad(f, (0, 1)), (x, w), (x, w))[1]


TRANSFORMED = {
    "jvp": lambda f: lambda x, w: jax.jvp(f, (x, w), (x, w)),
    "grad": lambda f: jax.grad(f, (0, 1)),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f), (0, 1)),
    "hessian product": _hessian_product,
    "vmap": lambda f: lambda x, w: jax.vmap(_hessian_product(f), (0, None))(jnp.stack([x, -x]), w),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformed(name):
    """XLA's number for number on a CPU, whatever is made of the function."""
    x, w, labels, _ = drawn(8, 64, 192)

    def results(plan):
        loss = functools.partial(linear_cross_entropy, labels=jnp.maximum(labels, 7), implementation=plan, **OPTIONS)
        return jax.tree.map(np.float32, jax.jit(TRANSFORMED[name](loss))(x, w))

    plan = Plan("recompute", 128)
    jax.tree.map(np.testing.assert_array_equal, results(with_kernels(plan)), results(plan))


ON_GPU = [
    ({}, None),
    ({"labels": None, "outputs": "logsumexp", "reduction": "none"}, None),
    ({"n": 1020}, "multiples of 8"),
    ({"d": 96}, "D to be a multiple of 64"),
    ({"v": 1000}, "V to be a multiple of 64"),
    ({"plan": Plan("recompute", 100)}, "block to be a multiple of 64"),
    ({"plan": Plan("gradient_in_forward", 1024, 500)}, "tokens at a time"),
    ({"dtype": jnp.float32}, "16 bits"),
    ({"softcap": 30.0}, "a soft cap"),
    ({"bias": jax.ShapeDtypeStruct((1024,), jnp.float32)}, "a bias"),
    ({"outputs": ("loss", "entropy"), "reduction": "none"}, "entropy"),
]
ON_A_TPU = [
    ({}, None),
    ({"n": 1021, "v": 999, "dtype": jnp.float32, "plan": Plan("gradient_in_forward", 100, 500)}, None),
    ({"n": 0}, "tokens"),
    ({"d": 192}, "D to be a multiple of 128"),
    ({"d": 2**16}, "D to be at most 32,768"),
    ({"dtype": jnp.float16}, "bfloat16 or float32"),
    ({"softcap": 30.0}, "a soft cap"),
]


@pytest.mark.parametrize(
    ("backend", "changed", "why"),
    [*(("gpu", *case) for case in ON_GPU), *(("tpu", *case) for case in ON_A_TPU)],
    ids=str,
)
def test_what_the_kernels_are_not_for(monkeypatch, backend, changed, why):
    """Is XLA's, and said."""
    options = {"n": 1024, "d": 128, "v": 1024, "dtype": jnp.bfloat16, "plan": Plan("recompute"), "reduction": "mean"}
    options |= changed
    n, d, v, dtype, plan = (options.pop(name) for name in ("n", "d", "v", "dtype", "plan"))
    x, w = jax.ShapeDtypeStruct((n, d), dtype), jax.ShapeDtypeStruct((d, v), dtype)
    labels = options.pop("labels", jax.ShapeDtypeStruct((n,), jnp.int32))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    found = explain(x, w, labels, implementation=with_kernels(plan), **options)
    assert found.kernels == ("mosaic" if why is None else "xla")
    assert "kernels" in str(found)
    assert (why or "kernels") in str(found)


@pytest.mark.parametrize(
    ("shape", "dtype", "devices"),
    [
        ((80, 128, 320), "bfloat16", ("cuda", "tpu")),
        ((80, 64, 320), "float16", ("cuda",)),
        ((81, 128, 321), "float32", ("tpu",)),
        ((81, 64, 321), "float32", ()),
    ],
    ids=str,
)
def test_devices_whose_kernels_take_a_problem(shape, dtype, devices):
    """A plan made on a CPU may be compiled for any of them."""
    x, w, labels, _ = drawn(*shape, dtype)
    plan = explain(x, w, labels, implementation=Plan("recompute", shape[2], kernels="mosaic"))
    assert plan.kernels == ("mosaic" if devices else "xla")
    assert kernels.devices_with(walk_over(shape[2]), {"x": x}) == devices


def test_the_table_names_kernels(monkeypatch):
    """Where they were fastest, they are chosen, with the sizes measured; but where XLA is asked for."""
    x, w, labels, _ = drawn(80, 128, 320)
    entry = {"device": jax.devices()[0].device_kind, "dtype": "bfloat16", "n": 80, "d": 128, "v": 320, "chunk": None}
    entries = [entry | {"strategy": "recompute", "block": 64, "kernels": "mosaic"}]
    monkeypatch.setattr("xentjax.losses.linear.measured._table", lambda: entries)
    chosen = explain(x, w, labels, implementation="recompute")
    assert (chosen.kernels, chosen.block) == ("mosaic", 64)
    by_xla = explain(x, w, labels, implementation=Plan("recompute"))
    assert (by_xla.kernels, by_xla.block) == ("xla", 320)
    assert explain(x, w, labels, implementation="recompute", softcap=30.0).kernels == "xla"
