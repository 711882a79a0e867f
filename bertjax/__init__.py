"""bertjax: compress an extractive-QA BERT and prove how fast and how accurate the small one is."""

from bertjax.version import __version__

__all__ = ["__version__"]
