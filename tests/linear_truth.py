"""Linear cross-entropy in float64 with NumPy, by hand: values, gradients, and how far rounding may move either.

It owes nothing to the library. Terms that are small stay so: 1 - p of a certain class is the sum of the others. What is
allowed is counted in ULP of the dtype of computation, from the sizes of terms: a logit may be off by two ULP of
|x| |w| + |b|, which moves p_j by that times p_j (1 - p_j); a sum of n terms by √n / 2, as roundings have either sign.
"""

import dataclasses

import numpy as np

#: Logits that are held at once.
HELD = 2**22
#: Numbers below the smallest normal one of float32 may be 0 before they meet logits, w, or the number of classes.
FLUSHED = 2.0 ** (-126 + 20)
#: The outputs that are floats, [N]; "top", [N, k], stands for "top_1", "top_2" and so on.
OUTPUTS = ("loss", "logsumexp", "log_prob", "entropy", "top")


@dataclasses.dataclass
class Truth:
    """Outputs by name; gradients of Σ cotangent·output by "x", "w", "bias"; what either may be off by, in ULP.

    With "top" there is "at_top", log p of the classes that are said to be the most probable."""

    values: dict
    gradients: dict
    ulp_of_values: dict
    ulp_of_gradients: dict

    def check(self, values, gradients, unit=2.0**-23):
        """Both are as true as the sizes of their terms allow."""
        for name, got in values.items():
            near(got, self.values[name], unit * self.ulp_of_values[name], name)
        if "top" in values:
            near(self.values["at_top"], self.values["top"], unit * self.ulp_of_values["top"], "at_top")
        for name, got in gradients.items():
            near(got, self.gradients[name], unit * self.ulp_of_gradients[name], f"gradient by {name}")


def near(got, true, allowed, name):
    got = np.asarray(got, np.float64)
    assert got.shape == np.shape(true), (name, got.shape, np.shape(true))
    with np.errstate(invalid="ignore"):
        is_same = (got == true) | (np.isnan(got) & np.isnan(true)) | (np.abs(got - true) <= allowed + FLUSHED)
    if not np.all(is_same):
        worst = np.argwhere(~is_same)[0]
        at = tuple(worst)
        number = np.sum(~is_same)
        raise AssertionError(
            f"{name}{at}: got {got[at]!r}, true {true[at]!r}, allowed ±{np.broadcast_to(allowed, got.shape)[at]:.3g}; "
            f"{number} of {got.size} are off"
        )


def truth(x, w, labels, cotangents, *, top=None, weights=None, **options):
    """The truth for class indices, or (indices, probabilities), and cotangents by output's name, [N] each.

    The weights are factors of the loss. ``top`` are the classes [N, k] that are said to be the most probable: of some
    that are alike but for rounding it may be any."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    indices, masses = labels if isinstance(labels, tuple) else (np.asarray(labels)[:, None], None)
    indices = np.asarray(indices)
    masses = np.ones(indices.shape) if masses is None else np.asarray(masses, np.float64)
    (n, d), v = x.shape, w.shape[1]
    options = {name: None if o is None else np.asarray(o, np.float64) for name, o in options.items()}
    cotangents = {name: np.asarray(c, np.float64) for name, c in cotangents.items()}
    shares = np.ones(n) if weights is None else np.asarray(weights, np.float64)

    found, sizes = [], []
    by = {"x": np.zeros((n, d)), "w": np.zeros((d, v)), "bias": np.zeros(v)}
    ulp = {name: np.zeros(g.shape) for name, g in by.items()}
    k = 8 + np.sqrt(v) / 2 + np.sqrt(n) / 2
    largest_w, largest_x = np.max(np.abs(w), axis=1), np.max(np.abs(x), axis=0, initial=0)
    rows = max(HELD // v, 1)
    for s in (slice(i, i + rows) for i in range(0, max(n, 1), rows)):
        of_top = None if top is None else (np.asarray(top)[s], cotangents.get("top", np.zeros(np.shape(top)))[s])
        values, of_values, slopes, terms = _of_rows(x[s], w, indices[s], masses[s], k, options, of_top)
        found.append(values | {"loss": values["loss"] * shares[s]})
        sizes.append(of_values | {"loss": of_values["loss"] * shares[s]})
        factors = {name: c[s, None] * (shares[s, None] if name == "loss" else 1) for name, c in cotangents.items()}
        if top is not None:
            factors["top"] = 1
        g = size = np.zeros(slopes["loss"].shape)
        for name, factor in factors.items():
            g, size = g + factor * slopes[name], size + np.abs(factor) * terms[name]
        by["x"][s] = g @ w.T
        by["w"] += x[s].T @ g
        by["bias"] += np.sum(g, axis=0)
        ulp["x"][s] = np.sum(size, axis=1)[:, None] * largest_w
        ulp["w"] += largest_x[:, None] * np.sum(size, axis=0)
        ulp["bias"] += np.sum(size, axis=0)
    joined = lambda parts: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Truth(joined(found), by, joined(sizes), ulp)


def _of_rows(x, w, indices, masses, k, o, top):
    """Outputs, their ULP; the outputs' slopes by z = x w + b, times the cotangent for "top", and the ULP of these."""
    n, v = len(x), w.shape[1]
    everywhere = np.arange(n)
    z = x @ w
    size = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(w, axis=0)
    if o.get("bias") is not None:
        z = z + o["bias"]
        size = size + np.where(np.isfinite(o["bias"]), np.abs(o["bias"]), 0)
    off = 2 * np.max(size, axis=1)
    cap, heat = o.get("softcap"), o.get("temperature")
    heat = 1.0 if heat is None else heat
    u, slope = z / heat, 1 / heat
    relative = k + 2 * off / heat
    if cap is not None:
        with np.errstate(over="ignore"):
            u, slope = cap * np.tanh(z / cap) / heat, 1 / np.cosh(z / cap) ** 2 / heat
        relative = relative + 2 * (off + cap) / cap
    if cap is not None or o.get("temperature") is not None:
        off = off / heat + 2 * np.max(np.where(np.isfinite(u), np.abs(u), 0), axis=1)
        relative = relative + 2 * off
    highest = np.argmax(u, axis=1)
    m = u[everywhere, highest]
    e = np.exp(u - m[:, None])
    e[everywhere, highest] = 0
    rest = np.sum(e, axis=1)
    p = e / (1 + rest)[:, None]
    q = 1 - p
    p[everywhere, highest], q[everywhere, highest] = 1 / (1 + rest), rest / (1 + rest)
    surprise = np.log1p(rest)[:, None] - (u - m[:, None])
    lse = m + np.log1p(rest)

    t = _spread(indices, masses, v)
    mass = np.sum(t, axis=1, keepdims=True)
    smoothing = o.get("label_smoothing")
    a = t if smoothing is None else (1 - smoothing) * t + smoothing / v * mass
    if o.get("class_weights") is not None:
        a = a * o["class_weights"]
    zeta = 0.0 if o.get("z_loss") is None else o["z_loss"]
    entropy = np.sum(_times(p, surprise), axis=1)
    values = {
        "loss": np.sum(_times(a, surprise), axis=1) + zeta * lse**2,
        "logsumexp": lse,
        "log_prob": -np.sum(_times(t, surprise), axis=1),
        "entropy": entropy,
    }
    of_lse = k * (np.abs(m) + np.log1p(rest)) + 2 * off
    of_values = {
        "loss": np.sum(_times(a, k * surprise + 2 * off[:, None] * q), axis=1) + 2 * zeta * np.abs(lse) * of_lse,
        "logsumexp": of_lse,
        "log_prob": np.sum(_times(t, k * surprise + 2 * off[:, None] * q), axis=1),
        "entropy": (k + 4 * off) * entropy,
    }
    if smoothing is not None:
        # The sum over all classes is measured from a maximum, and the masses from their sum.
        depth = m - np.min(np.where(np.isfinite(u), u, m[:, None]), axis=1)
        spread = smoothing * mass[:, 0] * (1 if o.get("class_weights") is None else np.mean(o["class_weights"]))
        of_values["loss"] += spread * k * (depth + np.log1p(rest))
    total = np.sum(a, axis=1, keepdims=True)
    parts = {
        "loss": (p * (total - a), -a * q, 2 * zeta * lse[:, None] * p),
        "logsumexp": (p,),
        "log_prob": (t * q, -p * (mass - t)),
        "entropy": (_times(p, surprise), -p * entropy[:, None]),
    }
    slopes = {name: sum(terms) * slope for name, terms in parts.items()}
    of_slopes = {name: relative[:, None] * slope * sum(map(np.abs, terms)) for name, terms in parts.items()}
    of_slopes["entropy"] += relative[:, None] * slope * p
    if top is not None:
        classes, cotangents = top
        log_p = -np.sort(surprise, axis=1)[:, : classes.shape[1]]
        values |= {"top": log_p, "at_top": -np.take_along_axis(surprise, classes, axis=1)}
        of_values["top"] = -k * np.where(log_p > -np.inf, log_p, 0) - 2 * off[:, None] * np.expm1(log_p)
        own, other = _by_top(classes, cotangents, v)
        slopes["top"] = (own * q - other * p) * slope
        own, other = _by_top(classes, np.abs(cotangents), v)
        of_slopes["top"] = relative[:, None] * slope * (own * q + other * p)
    return values, of_values, slopes, of_slopes


def _spread(classes, numbers, v):
    """Numbers [N, k] in the places of their classes [N, k], [N, V]."""
    found = np.zeros((len(classes), v))
    np.add.at(found, (np.arange(len(classes))[:, None], classes), numbers)
    return found


def _by_top(classes, cotangents, v):
    """The cotangent of each class's log p, and the sum of those of the others."""
    own = _spread(classes, cotangents, v)
    return own, np.sum(cotangents, axis=1, keepdims=True) - own


def _times(mass, value):
    """0 · inf = 0."""
    return np.where(mass == 0, 0, mass * np.where(mass == 0, 0, value))
