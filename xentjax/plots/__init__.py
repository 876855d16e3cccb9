"""Pictures of runs, of regressions and of language models.

Every function returns a matplotlib figure and touches no global state: no pyplot, no backend, no window. :func:`save`
writes it, the same bytes for the same picture. The functions ``draw_...`` write all pictures of a run folder.
"""

from xentjax.plots.languages import bits_curve, draw_language
from xentjax.plots.regressions import coefficient_intervals, draw_regression, regularization_path
from xentjax.plots.runs import confusion_matrix, draw_grid, draw_run, grid_of_fits, loss_curve, reliability_diagram
from xentjax.plots.style import save

__all__ = [
    "bits_curve",
    "coefficient_intervals",
    "confusion_matrix",
    "draw_grid",
    "draw_language",
    "draw_regression",
    "draw_run",
    "grid_of_fits",
    "loss_curve",
    "regularization_path",
    "reliability_diagram",
    "save",
]
