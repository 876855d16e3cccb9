"""Pictures: written whole, not empty, the same each time, and drawn from the numbers that they show."""

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from xentjax import figures, plots
from xentjax.training.config import TutorialConfig
from xentjax.training.errors import UserError
from xentjax.training.evaluation import calibration

CONFIG = TutorialConfig()


pytestmark = pytest.mark.usefixtures("module_compiled_fast")


def pixels(figure, path):
    plots.save(figure, path)
    return imread(path)[..., :3]


def looks_like_a_picture(image):
    """Mostly background, some ink, and more than a few colours."""
    background = np.all(image > 0.99, axis=-1).mean()
    return 0.15 < background < 0.98 and image.std() > 0.05 and len(np.unique(image.reshape(-1, 3), axis=0)) > 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("figures") / "new" / "folder"


@pytest.fixture(scope="module")
def drawn(folder, module_compiled_fast):
    """Every figure, as it was when it was written."""
    kept = {}

    def keep(figure, path):
        kept[path.suffix, len(kept) // 2] = figure
        plots.save(figure, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", keep)
        written = []
        figures.draw_figures(CONFIG, folder, written.append)
    assert [path.name for path in written] == [f"{name}.{end}" for name in figures.FIGURES for end in ("png", "svg")]
    assert sorted(folder.iterdir()) == sorted(written)
    return {name: kept[".png", i] for i, name in enumerate(figures.FIGURES)}


@pytest.mark.parametrize("name", figures.FIGURES)
def test_figures_are_written_as_png_and_svg(drawn, folder, name):
    image = imread(folder / f"{name}.png")[..., :3]
    assert looks_like_a_picture(image)
    assert (folder / f"{name}.svg").read_text().startswith("<?xml")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: cannot be written: File exists"):
        figures.draw_figures(CONFIG, tmp_path / "file")


def curves(figure, axes=0):
    return {line.get_label(): line.get_xydata() for line in figure.axes[axes].lines}


def test_binary_entropy_is_the_formula(drawn):
    p, h = next(iter(curves(drawn["a_binary_entropy"]).values())).T
    inside = slice(1, -1)
    expected = -p[inside] * np.log(p[inside]) - (1 - p[inside]) * np.log1p(-p[inside])
    np.testing.assert_allclose(h[inside], expected, rtol=1e-12)
    assert h[0] == h[-1] == 0


def test_models_and_cross_entropies_are_the_formulas(drawn):
    def model(intercept, slope, x):
        return 1 / (1 + np.exp(-(intercept + slope * x)))

    def cross(p, q):
        return -p * np.log(q) - (1 - p) * np.log(1 - q)

    models = curves(drawn["c_three_models"])
    x, y = models["ŷ₃: β = (−4, 3)"].T
    np.testing.assert_allclose(y, model(-4, 3, x), rtol=1e-12)
    first, second = model(0, 1, x), model(0.5, 1.5, x)
    four = curves(drawn["d_cross_entropy"])
    np.testing.assert_allclose(four["H(ŷ₁, ŷ₂)"][:, 1], cross(first, second), rtol=1e-9)
    np.testing.assert_allclose(four["H(ŷ₁)"][:, 1], cross(first, first), rtol=1e-9)
    np.testing.assert_allclose(four["H(ŷ₂)"][:, 1], cross(second, second), rtol=1e-9)
    np.testing.assert_allclose(
        curves(drawn["e_order_matters"])["H(ŷ₂, ŷ₁)"][:, 1], cross(second, first), rtol=1e-9
    )  # fmt: skip


def test_descent_reaches_the_minimum_of_the_surface(drawn):
    lines = curves(drawn["f_loss_surface"])
    path, minimum = lines["gradient descent, step 1"], lines["minimum"][0]
    np.testing.assert_array_equal(path[0], CONFIG.surface.start)
    assert np.linalg.norm(path[-1] - minimum) < 0.02 < 1 < np.linalg.norm(path[0] - minimum)
    losses = curves(drawn["g_loss_against_step"])
    assert len(losses) == len(CONFIG.solvers)
    for line in losses.values():
        assert line[-1, 1] < 0.02 * line[0, 1]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_same_picture_is_the_same_bytes(tmp_path, ending):
    first, second = tmp_path / f"1.{ending}", tmp_path / f"2.{ending}"
    for path in (first, second):
        plots.save(figures.binary_entropy_of_p(CONFIG), path)
    assert first.read_bytes() == second.read_bytes()


def test_pictures_of_a_run(tmp_path):
    steps = np.arange(300)
    loss = plots.loss_curve(steps, np.exp(-steps / 50), np.exp(-steps / 9), title="run", entropy_of_labels=0.69)
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 5, (4, 4)) + 20 * np.eye(4, dtype=int)
    confusion = plots.confusion_matrix(counts, ["one", "two", "three", "four"], title="run")
    confidence = rng.uniform(0.25, 1, 500)
    reliability = plots.reliability_diagram(calibration(confidence, rng.random(500) < confidence), title="run")
    assert {text.get_text() for text in confusion.axes[0].texts} == {str(n) for n in counts.ravel() if n}
    for figure in (loss, confusion, reliability):
        assert looks_like_a_picture(pixels(figure, tmp_path / "picture.png"))


def test_runs_that_never_moved_or_diverged_are_drawn(tmp_path):
    for value, norm in (([0.7], [0.0]), ([0.7, np.nan], [0.1, np.inf])):
        figure = plots.loss_curve(
            np.arange(len(value)), np.asarray(value), np.asarray(norm), title="run", entropy_of_labels=0.69
        )  # fmt: skip
        assert pixels(figure, tmp_path / "picture.png").std() > 0.05


@pytest.mark.parametrize("initial", [2.0, np.nan])
def test_a_grid_with_fits_that_diverge_or_never_start(tmp_path, initial):
    loss = np.stack([np.full((2, 150), initial) * np.linspace(1, end, 150) for end in (0.1, 1e18)])
    figure = plots.grid_of_fits([0.1, 9], ["0.1", "9 (diverged)"], loss, loss[..., -1], None, title="grid")
    assert pixels(figure, tmp_path / "picture.png").std() > 0.05
    if initial == 2:
        assert figure.axes[0].get_ylim()[1] == 10
        assert curves(figure, 1)["above"].tolist() == [[9, 10]]


def test_coefficients_with_intervals(tmp_path):
    """A dot and a line for each coefficient that is not 0, of classes that are not the reference."""
    one = np.array([[1.0], [0.0], [-2.0]])
    intervals = {"Wald": (one - 1, one + 1), "bootstrap": (one - 2, one + 0.5)}
    figure = plots.coefficient_intervals(one, intervals, ["a", "b", "c"], ["no", "yes"], per="one more", title="run")
    assert looks_like_a_picture(pixels(figure, tmp_path / "picture.png"))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "c"]
    assert axes.get_title(loc="left") == "run: coefficients of 2 features of 3, the others are 0"
    ends = [segment[:, 0].tolist() for lines in axes.collections for segment in lines.get_segments()]
    assert ends == [[0, 2], [-3, -1], [-1, 1.5], [-4, -1.5]]
    table = np.stack([np.zeros(3), [1.0, np.nan, 3.0], [2.0, 1.0, 1.0]], axis=1)
    figure = plots.coefficient_intervals(table, {}, list("abc"), ["u", "v", "w"], per="one more", title="run")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["v", "w"]
    assert pixels(figure, tmp_path / "picture.png").std() > 0.03


def test_drawing_leaves_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    figures.binary_entropy_of_p(CONFIG)
    assert dict(matplotlib.rcParams) == before


def test_calibration_of_a_constant_prediction():
    correct = np.arange(100) < 70
    result = calibration(np.full(100, 0.9), correct)
    np.testing.assert_allclose(result.error, 0.2, rtol=1e-12)
    assert result.count.sum() == 100
    np.testing.assert_allclose(calibration(np.full(100, 0.7), correct).error, 0, atol=1e-12)
