"""Language models: their vocabulary, what they are compared with, their network, and steps that can be gone on with."""

import collections
import functools
import itertools
import json
import lzma
import math
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from words import write_words

from xentjax.plots.languages import bits_curve
from xentjax.plots.style import save
from xentjax.training.checkpoint import named_leaves, read_checkpoint, write_checkpoint
from xentjax.training.config_file import read_run, to_toml, validate
from xentjax.training.errors import UserError
from xentjax.training.language.baselines import Counts, compressed, entropies
from xentjax.training.language.batches import covering_windows, training_windows
from xentjax.training.language.completion import complete
from xentjax.training.language.corpus import read_corpus
from xentjax.training.language.language_model import train_language_model
from xentjax.training.language.language_steps import Training
from xentjax.training.language.network import context, initial_params, losses, outputs
from xentjax.training.language.tokenized import Part, tokenize
from xentjax.training.language.tokenizer import END, Tokenizer
from xentjax.training.language_config import LanguageBatchesConfig, LanguageConfig, LanguageModelConfig, TextConfig

CONFIG = Path(__file__).parents[1] / "configs" / "bytes_lm.toml"
RNG = np.random.default_rng(0)

pytestmark = pytest.mark.usefixtures("compiled_fast")


def told(job, *args, **kwargs):
    """The one line that a mistake is told in."""
    with pytest.raises(UserError) as caught:
        job(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files(folder, texts):
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    return str(folder)


# -- the config --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["text.path=x"], "--set: text needs either source (the text of a package) or path (a folder with files)"),
        (["text.suffix=.c"], "--set: text takes suffix with path only, not with source = 'stdlib'"),
        (["text.test_fraction=1"], "--set: text.test_fraction must be less than 1, got 1"),
        (["text.folder=x"], "--set: text.folder is an unknown key"),
        (["vocabulary.size=257"], "--set: vocabulary.size must be greater than 257, got 257"),
        (["model.kernel=64"], "--set: model would see 64 to the power of 3 tokens back"),
        (["model.l2=1.0"], "--set: model.l2 does not go with a table text: a language model has no such key"),
        (["data.source=iris"], "--set: data does not go with a table text: a language model has no such key"),
        (["solver.name=newton"], "--set: solver.name must be 'optax', got 'newton'"),
        (["solver={name='optax', transformation='adam'}"], "needs learning_rate"),
        (["solver={name='optax', transformation='lbfgs'}"], "needs the whole training set: it cannot go with batches"),
        (["batches.epochs=3"], "--set: batches.epochs does not go with a table text"),
        (["stop={}"], "--set: stop.max_steps is missing, but required"),
        (["checkpoint.every_seconds=-1"], "--set: checkpoint.every_seconds must be greater than or equal to 0, got -1"),
    ],
)
def test_what_is_wrong_with_a_key(overrides, message):
    assert message in told(read_run, CONFIG, overrides)


def test_the_keys_of_a_language_model_are_for_one_only():
    message = told(read_run, CONFIG.parent / "digits.toml", ["vocabulary={}"])
    assert message == "--set: vocabulary only goes with a table text: it is for language models"


def test_the_config_survives_being_written():
    config = read_run(CONFIG)
    assert type(config) is LanguageConfig
    assert validate(tomllib.loads(to_toml(config.model_dump(exclude_none=True))), LanguageConfig, "again") == config


def test_a_folder_is_relative_to_the_config(tmp_path, monkeypatch):
    text = CONFIG.read_text().replace('source = "stdlib"', 'path = "here"')
    (tmp_path / "lm.toml").write_text(text)
    config = read_run(tmp_path / "lm.toml")
    assert isinstance(config, LanguageConfig)
    assert config.text.path == str(tmp_path / "here")
    monkeypatch.chdir(tmp_path.parent)
    assert read_run(tmp_path / "lm.toml", ["text.path=there"]).text.path == str(tmp_path.parent / "there")


# -- the text ----------------------------------------------------------------------------------------------------------


def test_whole_files_are_held_out_and_other_files_do_not_change_which(tmp_path):
    texts = {f"{i % 3}/{i}.py": bytes(RNG.integers(97, 123, 100).astype(np.uint8)) for i in range(40)}
    config = TextConfig(path=files(tmp_path, texts), test_fraction=0.2)
    corpus = read_corpus(config, seed=1)
    assert sorted(corpus.train + corpus.test) == sorted(texts.values())
    assert (len(corpus.train), len(corpus.test), corpus.left_out) == (32, 8, 0)
    assert read_corpus(config, seed=1) == corpus
    other = read_corpus(config, seed=2)
    assert set(other.test) != set(corpus.test)
    assert other.digest != corpus.digest
    # Of ten files more some are held out, and then fewer of those that were; none else.
    new = {f"new{i}.py": bytes(RNG.integers(97, 123, 100).astype(np.uint8)) for i in range(10)}
    more = read_corpus(TextConfig(path=files(tmp_path, new), test_fraction=0.2), seed=1)
    assert len(more.test) == 10
    assert set(more.test) <= set(corpus.test) | set(new.values()) or set(corpus.test) <= set(more.test)
    assert more.digest != corpus.digest


def test_more_bytes_than_wanted_are_left_out(tmp_path):
    folder = files(tmp_path, {f"{i}.txt": b"x" * 10 * (i + 1) for i in range(10)} | {"empty.txt": b"", "no.py": b"y"})
    corpus = read_corpus(TextConfig(path=folder, suffix=".txt", max_bytes=200, test_fraction=0.1), seed=0)
    taken = corpus.train + corpus.test
    assert sum(map(len, taken)) <= 200
    assert len(taken) + corpus.left_out == 10
    assert b"y" not in b"".join(taken)


def test_the_standard_library_is_there_without_its_tests():
    corpus = read_corpus(TextConfig(source="stdlib", max_bytes=100_000_000), seed=0)
    text = b"\n".join(corpus.train + corpus.test)
    assert b"class TextWrapper:" in text
    assert b"class TextWrapTestCase" not in text
    assert b"class JSONDecoder(object):" in text


def test_what_is_wrong_with_a_text(tmp_path):
    read = lambda **keys: told(read_corpus, TextConfig(**keys), seed=0)
    assert read(path=str(tmp_path / "no")) == f"text.path: {tmp_path / 'no'} is not a folder"
    assert "has no file whose name ends in '.py' (text.suffix)" in read(path=str(tmp_path))
    assert "has no file whose name ends in '**' (text.suffix)" in read(path=str(tmp_path), suffix="**")
    folder = files(tmp_path, {"a.py": b"x" * 100, "b.py": b"y" * 100})
    assert "of 1 files leaves none to train on; raise text.max_bytes" in read(path=folder, max_bytes=150)
    assert "text.test_fraction 0.9 of 2 files leaves none to train on" in read(path=folder, test_fraction=0.9)


# -- the vocabulary ----------------------------------------------------------------------------------------------------

SOURCE = Path(__file__).read_bytes()


@pytest.mark.parametrize("size", [258, 300, 600])
def test_every_byte_string_comes_back(size):
    tokenizer = Tokenizer.learn([SOURCE], size)
    assert tokenizer.size == size
    texts = [
        SOURCE,
        b"",
        bytes(range(256)),
        b"\r\n\t  x\n\n\n   \xff\xfe\x00 __init__",
        "αβγ — žluťoučký kůň\n".encode(),
    ]
    texts += [bytes(RNG.integers(0, 256, n).astype(np.uint8)) for n in range(50)]
    texts += [bytes(RNG.choice(np.frombuffer(b" \n\tab_1.(", np.uint8), 200)) for _ in range(50)]
    for text in texts:
        tokens = tokenizer.encode(text)
        assert tokens.dtype == np.int32
        assert np.all((tokens >= 0) & (tokens < size) & (tokens != END))
        assert tokenizer.decode(tokens) == text
    assert tokenizer.decode(tokenizer.stream(texts)) == b"".join(texts)
    assert np.sum(tokenizer.stream(texts) == END) == len(texts) + 1


def test_frequent_pieces_are_one_token_and_others_the_longest_beginnings():
    tokenizer = Tokenizer.learn([b"self.name self.name selfish\n    return self\n    return name"], size=260)
    assert tokenizer.pieces == (b"\n    ", b" self", b"name")
    tokenizer = Tokenizer((b"self", b"sel", b" self", b"\n    "))
    assert tokenizer.encode(b"self selfish\n    selx").tolist() == [257, 259, *b"ish", 260, 258, ord("x")]
    with pytest.raises(ValueError, match="token 261 is not one of the 261"):
        tokenizer.decode([261])


def test_the_vocabulary_does_not_depend_on_the_order_of_the_texts():
    lines = SOURCE.splitlines(keepends=True)
    assert Tokenizer.learn(lines, 400) == Tokenizer.learn(lines[::-1], 400)


def test_a_vocabulary_larger_than_the_text():
    message = (
        "vocabulary.size: the training text has pieces for 259 tokens, not for 300: take no more than that, or more"
    )
    assert told(Tokenizer.learn, [b"the cat"], 300) == f"{message} text"


# -- what it is compared with ------------------------------------------------------------------------------------------


def test_bits_per_byte_by_hand():
    """Four bytes in two tokens of a probability of 1/8 each, and the end of the file of 1/2: 7 bits."""
    part = Part([b"abcd"], np.array([END, 300, 301, END], np.int32), ["a"])
    nats = -(2 * math.log(1 / 8) + math.log(1 / 2))
    assert part.bits_per_byte(nats) == pytest.approx(7 / 4, rel=1e-15)
    assert part.bits_per_token(nats) == pytest.approx(7 / 3, rel=1e-15)


def test_entropies_by_hand():
    tokens = RNG.integers(0, 5, 200) ** 2
    pairs = collections.Counter(itertools.pairwise(tokens))
    before = collections.Counter(tokens[:-1])
    after = collections.Counter(tokens[1:])
    n = len(tokens) - 1
    unigram = -sum(c / n * math.log2(c / n) for c in after.values())
    bigram = -sum(c / n * math.log2(c / before[s]) for (s, _), c in pairs.items())
    np.testing.assert_allclose(entropies(tokens), (unigram, bigram), rtol=1e-13)


def kneser_ney(train, size):
    """p(t | s) as a table, by loops over the formula."""
    pairs = collections.Counter(itertools.pairwise(train.tolist()))
    once, twice = (sum(c == k for c in pairs.values()) for k in (1, 2))
    d = once / (once + 2 * twice) if once else 0.5
    table = np.zeros((size, size))
    for s in range(size):
        n = sum(c for (u, _), c in pairs.items() if u == s)
        followers = sum(u == s for u, _ in pairs)
        for t in range(size):
            lower = (sum(u == t for _, u in pairs) + 1) / (len(pairs) + size)
            table[s, t] = max(pairs[s, t] - d, 0) / n + d * followers / n * lower if n else lower
    return table


@pytest.mark.parametrize("train", [RNG.integers(0, 6, 40), np.array([0, 1, 0, 1, 0, 1]), np.array([1, 2, 3])])
def test_models_that_count_are_the_formula(train):
    size, test = 8, RNG.integers(0, 8, 60)
    counts = Counts.of(train, size)
    table = kneser_ney(train, size)
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(counts.bigram_nats(test), -np.log(table[test[:-1], test[1:]]).sum(), rtol=1e-12)
    p = (np.bincount(train[1:], minlength=size) + 1) / (len(train) - 1 + size)
    np.testing.assert_allclose(counts.unigram_nats(test), -np.log(p[test[1:]]).sum(), rtol=1e-12)


def test_a_compressor_gains_from_what_it_has_seen():
    known, new = SOURCE[: len(SOURCE) // 2] + SOURCE[-2000:], SOURCE[-2000:]
    alone, after = compressed(known, new)
    assert alone == len(lzma.compress(new, preset=9 | lzma.PRESET_EXTREME))
    assert after < alone / 5


# -- windows -----------------------------------------------------------------------------------------------------------


def test_an_epoch_predicts_no_token_twice_and_the_seed_decides_which():
    config, seen, tokens = LanguageBatchesConfig(size=3, length=5), 4, np.arange(1000, 1100, dtype=np.int32)
    per_epoch = (100 - seen - 5) // 5 // 3
    epoch = np.concatenate([training_windows(tokens, step, config, seen, seed=7) for step in range(per_epoch)])
    assert epoch.shape == (3 * per_epoch, seen + 5)
    assert np.all(np.diff(epoch, axis=1) == 1)
    predicted = epoch[:, seen:].ravel()
    assert len(set(predicted.tolist())) == len(predicted)
    again = training_windows(tokens, 2, config, seen, seed=7)
    np.testing.assert_array_equal(again, epoch[6:9])
    later = training_windows(tokens, per_epoch + 2, config, seen, seed=7)
    assert not np.array_equal(again, later)
    assert not np.array_equal(again, training_windows(tokens, 2, config, seen, seed=8))


@pytest.mark.parametrize("n", [2, 6, 16, 17, 31, 100])
def test_covering_windows_predict_every_token_once_from_what_stands_before(n):
    config, seen = LanguageBatchesConfig(size=3, length=5), 4
    tokens = np.concatenate([[END], np.arange(1000, 999 + n)]).astype(np.int32)
    padded = np.concatenate([np.full(seen - 1, END), tokens])
    found = []
    for windows, counts in covering_windows(tokens, config, seen):
        assert (windows.shape, counts.shape) == ((3, seen + 5), (3, 5))
        for window, counted in zip(windows, counts, strict=True):
            for j in np.flatnonzero(counted):
                at = int(window[seen + j])
                np.testing.assert_array_equal(window[j : seen + j], padded[at - 999 - 1 : at - 999 - 1 + seen])
                found.append(at)
    assert found == tokens[1:].tolist()
    some = list(covering_windows(tokens, config, seen, most=2))
    assert len(some) == min(2, -(-(n - 1) // 15))


# -- the network -------------------------------------------------------------------------------------------------------

MODEL = LanguageModelConfig(width=6, layers=2, kernel=3, hidden=5)
V = 11


def by_loops(params, tokens):
    """The outputs for one sequence, position by position, in float64."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    norm = lambda x: x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)
    x = p.embedding[tokens] * math.sqrt(MODEL.width)
    for i, layer in enumerate(p.layers):
        u, moved = norm(x), np.full_like(x, np.nan)
        for t in range(len(x)):
            at = [t - (MODEL.kernel - 1 - j) * MODEL.kernel**i for j in range(MODEL.kernel)]
            if min(at) >= 0:
                v = sum(layer.taps[j] * u[at[j]] for j in range(MODEL.kernel))
                g = v @ layer.gate
                moved[t] = x[t] + (g / (1 + np.exp(-g)) * (v @ layer.value)) @ layer.out
        x = moved
    return norm(x) @ p.projection


def test_the_network_is_its_formula_and_sees_only_its_context():
    assert context(MODEL) == 9
    params = initial_params(MODEL, RNG.integers(0, 9, V), seed=0, dtype="float32")
    tokens = RNG.integers(0, V, (2, 9 + 4))
    made = np.asarray(outputs(params, tokens[:, :-1]))
    assert made.shape == (2, 4, 6)
    loops = np.stack([by_loops(params, row[:-1])[8:] for row in tokens])
    np.testing.assert_allclose(made, loops, rtol=2e-5, atol=1e-6)

    logits = loops @ np.asarray(params.embedding, np.float64).T + np.asarray(params.bias, np.float64)
    assert np.abs(loops @ np.asarray(params.embedding).T).max() < 1  # nearly the unigram model
    wanted = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, tokens[:, 9:, None], -1)[..., 0]
    np.testing.assert_allclose(losses(params, tokens), wanted, rtol=1e-5)

    # The first prediction depends on each of the nine tokens before it, and on nothing else.
    changed = np.repeat(tokens[:1], 13, axis=0)
    np.fill_diagonal(changed, (np.diag(changed) + 1) % V)
    moved = np.abs(np.asarray(outputs(params, changed[:, :-1]))[:, 0] - made[0, 0]).max(axis=1)
    assert np.all(moved[:9] > 1e-5)
    assert np.all(moved[9:] < 1e-6)


def test_without_embeddings_it_begins_as_the_unigram_model():
    counts = np.array([1, 5, 0, 94, *[0] * (V - 4)])
    params = initial_params(MODEL, counts, seed=0, dtype="float32")
    params = params._replace(embedding=jnp.zeros_like(params.embedding))
    nats = losses(params, np.full((1, 10), 3))
    np.testing.assert_allclose(nats, -np.log((94 + 0.5) / (100 + 0.5 * V)), rtol=1e-5)


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path):
    """A function that reads the config of the words with some keys changed."""
    config = write_words(tmp_path)
    return lambda *overrides: read_run(config, overrides)


def test_it_learns_what_bigrams_cannot(words):
    seen = []
    made = train_language_model(words(), seen.append)
    assert made.status == "completed"
    assert made.failure is None
    costs = {name: cost["bits_per_token"] for name, cost in made.held_out().items()}
    # 2 bits for a word of four, of which 0.95 + 0.05/4 can be known: 0.29 bits.
    assert costs["unigram"] > costs["bigram"] > 1.8
    assert 0.29 < costs["model"] < costs["bigram"] / 2
    assert costs["model"] == pytest.approx(made.held_out_nats / math.log(2) / made.text.test.predicted)
    assert [stage.done for stage in seen if stage.total] == list(range(151))
    assert "bits per byte" in seen[-2].what
    assert made.look_steps.tolist() == np.linspace(0, 150, 21).astype(int)[1:].tolist()
    assert made.looks[-1] < made.looks[0]
    assert len(made.losses) == 150
    table = made.table()
    bits = made.held_out()["model"]["bits_per_byte"]
    assert f"{bits:.3f}" in next(line for line in table.splitlines() if line.startswith("language model"))
    assert json.dumps(made.summary())
    words = made.sample.split()
    assert np.mean([word in ("one", "two", "six", "ten") for word in words]) > 0.9


def test_a_run_goes_on_from_any_of_its_states_with_the_same_bits(words, tmp_path):
    config = words("stop.max_steps=9")
    training = Training(config, tokenize(config))
    whole = list(training.states(training.initial_state()))
    for number in (0, 4, 8):
        write_checkpoint(tmp_path / "state", whole[number], {})
        states = list(training.states(read_checkpoint(tmp_path / "state", training.initial_state())))
        assert len(states) == 10 - number
        for name, leaf in named_leaves(states[-1]).items():
            np.testing.assert_array_equal(leaf, named_leaves(whole[-1])[name], strict=True)
    assert states[-1].status == "completed"


def test_a_step_that_is_too_large_is_told(words):
    made = train_language_model(words("solver={name='optax', transformation='sgd', learning_rate=1e30}"))
    assert made.status == "diverged"
    assert made.failure.startswith("diverged: a step led to")
    assert np.isfinite(made.held_out_nats)
    # The step after which no loss is finite, and where its windows are.
    step, windows = made.blame["step"], made.blame["windows"]
    assert made.blame["why"] == "a step to parameters that are not finite"
    tokens, batches, context = made.text.train.tokens, made.config.batches, 4
    shown = training_windows(tokens, step, batches, context, made.config.seed)
    for window, told_of in zip(shown, windows, strict=True):
        first = told_of["first_token"]
        np.testing.assert_array_equal(tokens[first : first + 16], window[context:])
        file = made.text.train.names.index(told_of["file"])
        assert np.sum(tokens[:first] == END) - 1 == file
    assert f"step {step} brings a step to parameters that are not finite: 8 examples (in " in made.failure


def test_a_text_too_short_for_a_batch(words):
    config = words("batches.size=1000")
    assert "but the training text has" in told(Training, config, tokenize(config))


def test_the_curve_is_drawn_whatever_there_is(tmp_path):
    others = {"unigram": 2.5, "bigram": 1.75}
    for batches, looks in ((np.linspace(3, 1, 250), [2.0, 1.5]), (np.zeros(0), []), (np.full(3, np.nan), [np.nan])):
        figure = bits_curve(batches, np.arange(len(looks)), np.asarray(looks), 1.4, others, title="words")
        save(figure, tmp_path / "loss.png")
        heights = sorted(line.get_ydata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":")
        assert heights == [1.75, 2.5]


# -- completions -------------------------------------------------------------------------------------------------------


def test_a_completion_is_drawn_from_the_predictions():
    """A network that is sure: after token t comes t + 1, after the last one a file ends."""
    v, tokenizer = 260, Tokenizer((b"ab", b" ab", b" abc"))
    params = jax.tree.map(np.zeros_like, initial_params(MODEL, np.ones(v), seed=0, dtype="float32"))
    sure = np.zeros((v, 6), np.float32)
    for place, token in enumerate([ord("x"), 257, 258, 259, END]):
        sure[token, place] = 50.0
    shift = np.eye(6, k=1, dtype=np.float32)
    params = params._replace(embedding=sure, projection=shift)
    text = functools.partial(complete, params, tokenizer, context=context(MODEL))
    assert text(b"yx", tokens=2) == b"yxab ab"
    assert text(b"yx", tokens=3) == b"yxab ab abc"
    assert text(b"yx", tokens=9) == b"yxab ab abc"
    # One that knows nothing draws by the bias, and by the seed.
    even = params._replace(embedding=0 * sure, bias=np.where(np.arange(v) < 256, 0.0, -np.inf).astype(np.float32))
    text = functools.partial(complete, even, tokenizer, b"", tokens=2000, context=context(MODEL))
    drawn = text()
    assert len(set(drawn)) > 250
    assert text() == drawn != text(seed=1)
