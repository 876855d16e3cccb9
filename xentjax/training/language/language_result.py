"""What the run of a language model ends with: its model, the curve of its steps, and what held-out text costs."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from xentjax.solvers.status import Status
from xentjax.training import run_folder
from xentjax.training.blame import write_blame
from xentjax.training.checkpoint import named_leaves
from xentjax.training.language.baselines import Baselines
from xentjax.training.language.network import LanguageParams, context
from xentjax.training.language.tokenized import Tokenized
from xentjax.training.language_config import LanguageConfig
from xentjax.training.machine import Cost, versions
from xentjax.training.steps import Ending

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LanguageRun(Ending):
    """What a run ends with. Arrays are of NumPy, times in seconds."""

    config: LanguageConfig
    text: Tokenized
    params: LanguageParams
    status: Status
    losses: Array
    """``[steps]``, the mean nats per token of each step's batch, before the step."""
    look_steps: Array
    looks: Array
    """The mean nats per token of a part of the held-out text after so many steps."""
    held_out_nats: float
    """The cross-entropy of the held-out text, the sum over its tokens."""
    baselines: Baselines
    sample: str
    """The beginning of a file as the model writes it."""
    cost: Cost
    blame: dict[str, Any] | None = None

    @property
    def message(self) -> str:
        if self.status == "completed":
            return "all steps are made"
        if self.interrupted:
            return "stopped by the user before it ended"
        return self.status.message

    def held_out(self) -> dict[str, dict[str, float | None]]:
        """What the held-out text costs, by each means, in bits per byte and, where there are tokens, per token."""
        test, made = self.text.test, self.baselines
        by_tokens = {"unigram": made.unigram_nats, "bigram": made.bigram_nats, "model": self.held_out_nats}
        costs: dict[str, dict[str, float | None]] = {
            name: {"bits_per_byte": test.bits_per_byte(nats), "bits_per_token": test.bits_per_token(nats)}
            for name, nats in by_tokens.items()
        }
        for name, size in {"xz": made.xz_bytes, "xz_after_training": made.xz_bytes_after_training}.items():
            costs[name] = {"bits_per_byte": 8 * size / test.bytes, "bits_per_token": None}
        return costs

    def summary(self) -> dict[str, Any]:
        train, own = self.text.train, self.baselines.entropies
        parts = {"train": train, "held_out": self.text.test}
        of_tokens = train.predicted / train.bytes
        return {
            "kind": run_folder.LANGUAGE,
            "name": self.config.name,
            "status": str(self.status),
            "message": self.message,
            "steps": len(self.losses),
            "tokens_of_a_step": self.config.batches.size * self.config.batches.length,
            "vocabulary": self.text.tokenizer.size,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.params)),
            "context": context(self.config.model),
            "text": {
                name: {"files": len(part.texts), "bytes": part.bytes, "tokens": part.predicted}
                for name, part in parts.items()
            },
            "files_left_out": self.text.left_out,
            "digest": self.text.digest,
            "entropies_of_training_text": {
                name: {"bits_per_byte": bits * of_tokens, "bits_per_token": bits}
                for name, bits in own._asdict().items()
            },
            "held_out": self.held_out(),
            "sample": self.sample,
            **self.cost.summary(),
            "versions": {"python": platform.python_version(), **versions("xentjax", "jax", "jaxlib", "optax", "numpy")},
        }

    def table(self) -> str:
        return tables(self.summary())

    def write(self, folder: Path) -> None:
        """Everything of the run folder but the picture."""
        run_folder.write_config(folder, self.config)
        # A byte is the character of the same number, as in Latin-1.
        pieces = [piece.decode("latin-1") for piece in self.text.tokenizer.pieces]
        run_folder.write_json(folder / "vocabulary.json", {"pieces": pieces})
        arrays = {name: np.asarray(leaf, order="C") for name, leaf in named_leaves(self.params).items()}
        save_file(arrays, folder / "params.safetensors")
        looks = dict(zip(self.look_steps.tolist(), self.looks.tolist(), strict=True))
        rows = (
            {"step": step, "train_nats_per_token": loss, "held_out_nats_per_token": looks.get(step)}
            for step, loss in enumerate([*self.losses, None])
        )
        run_folder.write_json_lines(folder / "metrics.jsonl", rows)
        write_blame(self.blame, folder)
        (folder / "summary.txt").write_text(self.table() + "\n", encoding="utf-8")
        run_folder.write_json(folder / run_folder.MARK, self.summary())


#: How the tables call what the summary has.
_MEANS = {
    "unigram": "unigrams, add one",
    "bigram": "bigrams, Kneser-Ney",
    "xz": "xz -9e",
    "xz_after_training": "xz -9e, after the training text",
    "model": "language model",
}


def tables(summary: Mapping[str, Any]) -> str:
    """What a run prints, from what its ``summary.json`` says."""
    width = 62
    seen = summary["steps"] * summary["tokens_of_a_step"]
    lines = [
        f"Language model of {summary['vocabulary']:,} tokens",
        "=" * width,
        f"{'status':<11}{summary['status']:<18}{'steps':<14}{summary['steps']:>{width - 43},}",
        f"{'parameters':<11}{summary['parameters']:<18,}{'tokens seen':<14}{seen:>{width - 43},}",
        "-" * width,
        f"{'':<26}{'files':>8}{'bytes':>14}{'tokens':>14}",
    ]
    for name, key in {"training text": "train", "held-out text": "held_out"}.items():
        part = summary["text"][key]
        lines.append(f"{name:<26}{part['files']:>8,}{part['bytes']:>14,}{part['tokens']:>14,}")
    lines += ["-" * width, f"{'held-out text':<32}{'bits per byte':>15}{'per token':>15}"]
    lines += [_cost(name, summary["held_out"][key]) for key, name in _MEANS.items()]
    lines += ["-" * width, f"{'entropies of the training text':<32}{'bits per byte':>15}{'per token':>15}"]
    own = summary["entropies_of_training_text"]
    lines += [_cost("of a token", own["unigram"]), _cost("after the token before it", own["bigram"])]
    lines += ["=" * width]
    return "\n".join(lines)


def _cost(name: str, cost: Mapping[str, float | None]) -> str:
    cells = ("–" if bits is None else f"{bits:.3f}" for bits in (cost["bits_per_byte"], cost["bits_per_token"]))
    return f"{name:<32}" + "".join(f"{cell:>15}" for cell in cells)
