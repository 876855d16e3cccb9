"""The configs of language models: their keys, types and defaults, and what does not go together."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt
from pydantic import field_validator as check_field
from pydantic import model_validator as check_model

from xentjax.training.config import CheckpointConfig, MeshConfig, RunConfig
from xentjax.training.config_table import Table
from xentjax.training.solver import OptaxConfig

#: Tokens that every vocabulary has: the 256 bytes, and the end of a file.
FIXED_TOKENS = 257


class TextConfig(Table):
    """The text: that of a package (``source``), or files of the user's in a folder and those in it (``path``).

    ``"stdlib"`` is Python's standard library without its tests. Of a folder the files whose names end in ``suffix``
    count; a relative ``path`` is relative to the config file. Where there are more than ``max_bytes``, some files are
    left out. Files with ``test_fraction`` of the bytes, drawn by the seed, are held out.
    """

    source: Literal["stdlib"] | None = None
    path: str | None = None
    suffix: str = ".py"
    max_bytes: int = Field(default=16_000_000, gt=0, lt=2**31)
    test_fraction: float = Field(default=0.05, gt=0, lt=1)

    @check_model(mode="after")
    def _one_origin(self) -> TextConfig:
        if (self.source is None) == (self.path is None):
            raise ValueError("needs either source (the text of a package) or path (a folder with files)")
        if self.source is not None and self.suffix != ".py":
            raise ValueError(f"takes suffix with path only, not with source = {self.source!r}")
        return self


class VocabularyConfig(Table):
    """The vocabulary: ``size`` tokens, which are the 256 bytes, the end of a file, and the most frequent pieces."""

    size: int = Field(default=32_768, gt=FIXED_TOKENS, lt=2**31)


class LanguageModelConfig(Table):
    """The network: ``layers`` gated layers of ``hidden`` units over embeddings of ``width`` numbers.

    Each layer sees ``kernel`` positions, those of layer i in steps of kernelⁱ: together kernel^layers tokens.
    """

    width: PositiveInt = 128
    layers: int = Field(default=3, gt=0, le=16)
    kernel: int = Field(default=4, ge=2, le=64)
    hidden: PositiveInt = 256

    @check_model(mode="after")
    def _sees_no_more_than_can_be_held(self) -> LanguageModelConfig:
        if self.kernel**self.layers > 65_536:
            seen = f"{self.kernel} to the power of {self.layers}"
            raise ValueError(f"would see {seen} tokens back, but at most 65536 can be held: take fewer layers")
        return self


class LanguageBatchesConfig(Table):
    """Each step predicts ``size`` windows of ``length`` tokens each."""

    size: PositiveInt
    length: PositiveInt


class StepsConfig(Table):
    """When to stop: after ``max_steps``."""

    max_steps: int = Field(gt=0, lt=2**31)


class LanguageConfig(RunConfig):
    """A language model, trained by steps of an optax transformation: ``xentjax fit FILE``."""

    text: TextConfig
    vocabulary: VocabularyConfig = VocabularyConfig()
    model: LanguageModelConfig = LanguageModelConfig()
    solver: OptaxConfig
    batches: LanguageBatchesConfig
    stop: StepsConfig
    checkpoint: CheckpointConfig = CheckpointConfig()

    @check_model(mode="after")
    def _is_divided(self) -> LanguageConfig:
        mesh = self.mesh or MeshConfig()
        if self.batches.size % mesh.data:
            raise ValueError(f"mesh.data = {mesh.data} needs a batches.size that it divides, got {self.batches.size}")
        if self.vocabulary.size % mesh.vocab:
            size = self.vocabulary.size
            raise ValueError(f"mesh.vocab = {mesh.vocab} needs a vocabulary.size that it divides, got {size}")
        return self

    @check_field("solver")
    @classmethod
    def _steps(cls, solver: OptaxConfig) -> OptaxConfig:
        solver.require_rate()
        if solver.searches:
            raise ValueError(f"{solver.searches} needs the whole training set: it cannot go with batches")
        return solver
