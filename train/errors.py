"""Errors meant for the person who started the run: one sentence that names what is wrong, the value, and the remedy."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can put right. Commands print its sentence without a traceback and exit with code 2."""
