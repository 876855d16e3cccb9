"""A small language for tests of language models, in which a word follows from the two before it."""

from pathlib import Path

import numpy as np

WORDS = [" one", " two", " six", " ten"]

CONFIG = """
[text]
path = "words"
suffix = ".txt"
test_fraction = 0.1
[vocabulary]
size = 261
[model]
width = 16
layers = 1
kernel = 4
hidden = 32
[solver]
name = "optax"
transformation = "adam"
learning_rate = 0.02
schedule = {name = "cosine", warmup_steps = 5}
[batches]
size = 8
length = 16
[stop]
max_steps = 150
[checkpoint]
every_seconds = 0
"""


def write_words(folder: Path) -> Path:
    """Forty files of 150 words, and the config of a run on them; its path."""
    generator = np.random.default_rng(1)
    (folder / "words").mkdir()
    for i in range(40):
        (folder / "words" / f"{i}.txt").write_text(sentence(generator))
    (folder / "words.toml").write_text(CONFIG)
    return folder / "words.toml"


def sentence(generator: np.random.Generator, words: int = 150) -> str:
    """Word n is the sum of the two before it and 1, modulo 4, and one time in twenty any word.

    Each word alone says nothing of the next one: a bigram model needs 2 bits. Of both words there are 0.29 bits left.
    """
    said = [0, 1]
    while len(said) < words:
        sure = generator.random() < 0.95
        said.append((said[-1] + said[-2] + 1) % 4 if sure else int(generator.integers(4)))
    return "".join(WORDS[word] for word in said)
