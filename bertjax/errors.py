"""The two ways in which a program ends that are not bugs. Programs turn them into exit codes."""

from __future__ import annotations


class UserError(Exception):
    """The input is wrong. A line for each fault: the file, the field and the mend. Exit code 2."""


class WorkFailed(Exception):
    """The input is fine, but the work failed or a gate was missed. Exit code 1."""
