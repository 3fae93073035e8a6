"""Whether there is a network, asked only when something that was named is not on this machine."""

from __future__ import annotations

import os
import socket
import threading
from urllib.parse import urlsplit
from urllib.request import getproxies

from embedtune.config import TrainConfig
from embedtune.paths import expanded


def named_sources(config: TrainConfig) -> list[str | None]:
    """Every model and data set that a training is told to use."""
    data, evaluation, loss = config.data, config.evaluation, config.loss
    guide = None if loss.guide == "self" else loss.guide
    models = [config.model.base, loss.teacher, guide, config.mining.judge, *evaluation.against]
    return [*models, data.train, data.test, data.dev, data.corpus, *evaluation.forgetting]


def use_cache_without_network(*sources: str | None) -> None:
    """Where the hub's name does not resolve, let the hub's clients use their caches at once.

    They would retry for most of a minute first. The look-up gets two seconds: a network that takes longer is there.
    Behind a proxy the name is the proxy's to resolve, so nothing is looked up; nor if all sources are files here.

    Args:
        sources: files, folders and hub ids that a command was given; None for those that it was not.
    """
    if all(os.path.exists(expanded(source)) for source in sources if source):
        return
    if getproxies().keys() & {"http", "https", "all"}:
        return
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    found: list[bool] = []

    def look_up() -> None:
        try:
            socket.getaddrinfo(host, 443)
            found.append(True)
        except OSError:
            found.append(False)

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(timeout=2)
    if found == [False]:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
