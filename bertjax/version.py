"""bertjax's version, which pyproject.toml reads here; no module of the package imports the package's root."""

__version__ = "0.2.0"
