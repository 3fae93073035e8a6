"""Tokens and passwords out of whatever is printed: messages, tracebacks and the libraries' logs."""

from __future__ import annotations

import logging
import os
import re

_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_BEARER = re.compile(r"(?i)(\bbearer\s+)[^\s'\"]+")
_IN_ADDRESS = re.compile(r"(:/{1,2})[^/\s@'\"]+@")
"""USER:PASSWORD, as addresses of a mirror or a proxy may hold them; one that was taken for a path has lost a slash."""


def without_secrets(text: str) -> str:
    """The text with dots for every token of the Hub, every bearer token, and the user and password of an address."""
    for name in _TOKENS:
        if token := os.environ.get(name, "").strip():
            text = text.replace(token, "...")
    text = _HUB_TOKEN.sub("...", text)
    return _IN_ADDRESS.sub(r"\1...@", _BEARER.sub(r"\1...", text))


class SecretsRemoved(logging.Formatter):
    """Formats records, and the tracebacks in them, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))
