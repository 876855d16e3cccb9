"""Linear cross-entropy compiled for devices that are not there: what programs there are, and what is in them."""

import collections
import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest

from xentjax.losses.linear import explain, linear_cross_entropy


def arguments_of(n, d, v, layout, sharding=None):
    """x, w and labels, in bfloat16."""
    shapes = ((n, d), jnp.bfloat16), ((d, v) if layout == "dv" else (v, d), jnp.bfloat16), ((n,), jnp.int32)
    return [jax.ShapeDtypeStruct(*shape, sharding=sharding) for shape in shapes]


@functools.cache
def planned(platform, n, d, v, strategy, layout="dv"):
    """The plan of a mean where there is such a device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: platform)
        return explain(*arguments_of(n, d, v, layout), reduction="mean", w_layout=layout, implementation=strategy)


def value_and_gradients(plan, layout):
    """Those of the mean by x and w."""

    def loss(x, w, labels):
        return linear_cross_entropy(x, w, labels, reduction="mean", implementation=plan, w_layout=layout)

    return jax.value_and_grad(loss, (0, 1))


@dataclasses.dataclass(frozen=True)
class Program:
    """What XLA made: the text of all computations, and bytes beside arguments and results."""

    text: str
    temporary: int

    @functools.cached_property
    def computations(self):
        """The lines of each computation, by name."""
        found, name = collections.defaultdict(list), None
        for line in self.text.splitlines():
            if match := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
                name = match[1]
            elif name and " = " in line:
                found[name].append(line.strip().removeprefix("ROOT "))
        return found

    @functools.cached_property
    def run(self):
        """The instructions that run by themselves, by loop body and entry: not those within a fusion."""
        bodies = re.findall(r"while\(.*body=%([\w.-]+)", self.text)
        entry = re.search(r"^ENTRY %([\w.-]+)", self.text, re.MULTILINE)[1]
        return {name: self.computations[name] for name in (*bodies, entry)}

    @property
    def instructions(self):
        return [line for lines in self.run.values() for line in lines]

    @functools.cached_property
    def results(self):
        """What each name stands for, as it is written."""
        lines = [line for lines in self.computations.values() for line in lines]
        return {line.split(" = ")[0]: line.split(" = ")[1] for line in lines}

    @property
    def products(self):
        """Instructions that are matrix products, wherever: (line, dtypes and shapes of its operands)."""
        lines = [line for lines in self.computations.values() for line in lines]
        calls = [line for line in lines if re.search(r'custom_call_target="__cublas|\bdot\(|convolution\(', line)]
        found = []
        for line in calls:
            operands = re.findall(r"%[\w.-]+", re.search(r"(?:custom-call|dot|convolution)\(([^)]*)\)", line)[1])
            found.append((line, [re.match(r"\(?(\w+)\[([\d,]*)\]", self.results[name]).groups() for name in operands]))
        return found


def sizes_of(line):
    """Entries of each array in an instruction's result."""
    result = line.split(" = ")[1]
    result = result[: result.index(")") + 1] if result.startswith("(") else result.split(" ")[0]
    return [math.prod(map(int, dims.split(","))) for dims in re.findall(r"\w+\[([\d,]+)\]", result)]
