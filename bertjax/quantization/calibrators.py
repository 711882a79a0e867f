"""From a histogram of magnitudes to the clipping threshold `amax`: max, percentile, entropy, mse.

NumPy only. A histogram has `BINS` equal bins over [0, largest magnitude seen].
"""

from __future__ import annotations

from typing import get_args

import numpy as np

from bertjax.modeldir.config import Calibrator

BINS = 2048
LEVELS = 128  # magnitudes of the INT8 grid
PERCENTILE = 99.99

CALIBRATORS: tuple[Calibrator, ...] = get_args(Calibrator)


def choose_amax(counts: np.ndarray, largest: float, calibrator: Calibrator) -> float:
    """The threshold beyond which values are clipped.

    Args:
      counts: float or int [BINS], the number of magnitudes in each bin.
      largest: the right edge of the last bin; 0 if only zeros were seen, which gives the threshold 127 (scale 1).
    """
    if largest <= 0.0:
        return 127.0
    counts = counts.astype(np.float64)
    if calibrator == "max":
        return float(largest)
    if calibrator == "percentile":
        share = np.cumsum(counts) / counts.sum()
        return float(largest * (np.searchsorted(share, PERCENTILE / 100.0) + 1) / BINS)
    if calibrator == "entropy":
        return float(largest * _entropy_bins(counts) / BINS)
    return _mse_amax(counts, largest)


def _entropy_bins(counts: np.ndarray) -> int:
    """The number of bins whose distribution, rounded to `LEVELS` levels, diverges least (KL) from the whole.

    The method is that of TensorRT's entropy calibrator (Migacz, "8-bit inference with TensorRT", GTC 2017): the
    clipped tail is added to the last kept bin of the reference, and each level spreads its mass over its own
    non-empty bins. The first bin holds the exact zeros, which every grid represents, and is left out.
    """
    counts = counts.copy()
    counts[0] = 0.0
    best, best_divergence = BINS, np.inf
    for kept in range(LEVELS, BINS + 1, LEVELS // 8):
        reference = counts[:kept].copy()
        reference[-1] += counts[kept:].sum()
        if not reference.any():
            continue
        level = np.arange(kept) * LEVELS // kept
        filled = counts[:kept] > 0
        mass = np.bincount(level, weights=counts[:kept], minlength=LEVELS)
        members = np.bincount(level, weights=filled, minlength=LEVELS)
        spread = np.where(filled, mass[level] / np.maximum(members[level], 1), 0.0)
        divergence = _divergence(reference, spread)
        if divergence < best_divergence:
            best, best_divergence = kept, divergence
    return best


def _divergence(reference: np.ndarray, candidate: np.ndarray) -> float:
    """KL divergence of two unnormalized histograms, with a little mass moved to the candidate's empty bins."""
    p, q = reference / reference.sum(), candidate / max(candidate.sum(), 1e-12)
    q = np.where((p > 0) & (q == 0), 1e-4 / len(q), q)
    return float(np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0) / np.where(q > 0, q, 1.0)), 0.0)))


def _mse_amax(counts: np.ndarray, largest: float) -> float:
    """The threshold with the least mean squared error of rounding and clipping, each bin taken at its middle."""
    values = (np.arange(BINS) + 0.5) * largest / BINS
    best, best_error = largest, np.inf
    for share in np.linspace(0.05, 1.0, 191):
        amax = share * largest
        scale = amax / 127.0
        rounded = np.minimum(np.round(values / scale), 127) * scale
        error = float((counts * np.square(values - rounded)).sum())
        if error < best_error:
            best, best_error = amax, error
    return float(best)
