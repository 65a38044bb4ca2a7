"""How far rankings by the scores hold: over seeds, against retraining, and against cheap baselines.

Each split of each data set is trained with the defaults of `adamshap attribute`, many times with other initialisations
and orders. Every weighting of the steps gives totals. The study compares their rankings between runs, and with
retraining on random halves and without one sample, and tests how well they find flipped labels.
"""

from adamshap.verify.claims.stability.experiment import measure
from adamshap.verify.claims.stability.presentation import section
from adamshap.verify.claims.stability.settings import FULL, QUICK, Case, Settings

NAME = "stability"
TITLE = "Stability: rankings over seeds, against retraining and baselines"
CLAIM = (
    "Not a claim of the paper: which weighting of the steps ranks the samples alike in another run, and as retraining"
    " does. Adam stands for `random_order`, SGD for SGD's formula in the same runs; sum and unit are the weightings of"
    " `reference.weighted`."
)

__all__ = ["CLAIM", "FULL", "NAME", "QUICK", "TITLE", "Case", "Settings", "measure", "section"]
