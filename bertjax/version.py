"""bertjax's version. It stands apart from the package's root, which no module of the package imports."""

__version__ = "0.1.0"
