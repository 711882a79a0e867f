"""bertjax: compress an extractive-QA BERT and prove how fast and how accurate the small one is."""

__version__ = "0.1.0"
