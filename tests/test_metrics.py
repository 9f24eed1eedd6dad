import numpy as np
import pytest

from ddad.evaluation.metrics import auroc


def test_auroc_counts_the_pairs_in_order_and_half_of_the_ties():
    generator = np.random.default_rng(0)
    good, defective = generator.integers(0, 20, 57), generator.integers(5, 25, 31)
    pairs = [(d > g) + 0.5 * (d == g) for d in defective for g in good]
    assert auroc(good, defective) == pytest.approx(np.mean(pairs))
    assert auroc(np.array([0.0, 1.0]), np.array([2.0])) == 1
    assert auroc(np.ones(4), np.ones(3)) == 0.5


def test_auroc_refuses_what_has_no_value():
    with pytest.raises(ValueError, match="found 0 and 2"):
        auroc(np.array([]), np.ones(2))
    with pytest.raises(ValueError, match="finite"):
        auroc(np.array([np.nan]), np.ones(2))
