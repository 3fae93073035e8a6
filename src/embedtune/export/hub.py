"""A folder of the run to the Hugging Face Hub.

The token is the one that `hf auth login` or HF_TOKEN gives; nothing here reads, shows or keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError, of httpx or of httpx2
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from embedtune.errors import HubError, RunError

Files = Mapping[str, Path | bytes]
"""Name in the repository to a file or its content."""


@dataclass(frozen=True)
class Upload:
    """What came of it."""

    url: str
    changed: bool
    """Whether there is a new commit; not if all files were there already."""
    private: bool


def check_repo(repo: str) -> None:
    """Whether that is a name that a repository may have.

    Raises:
        HubError: it is not OWNER/NAME, or has characters that the Hub does not take.
    """
    expected = "expected OWNER/NAME, such as your-name/my-model: letters, digits, '-', '_' and '.'."
    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise HubError(f"'{repo}' is no name of a repository on the Hub; {expected}") from None
    if "/" not in repo:
        raise HubError(f"'{repo}' names no owner; {expected}")


def check_access() -> None:
    """Whether there is a network and a token, as far as that is known without asking the Hub.

    Raises:
        HubError: there is none.
    """
    if constants.HF_HUB_OFFLINE:
        raise HubError(f"{_unreachable()}, or HF_HUB_OFFLINE is set.\nType the same command again with a network.")
    if get_token() is None:
        raise HubError(f"not logged in at {constants.ENDPOINT}.\n{_LOG_IN}")


def upload(files: Files, repo: str, *, public: bool, revision: str | None, title: str, description: str) -> Upload:
    """Make the repository if there is none, and commit the files to it in one commit.

    Args:
        files: what to upload; what else the repository holds stays.
        repo: OWNER/NAME.
        public: whether everybody may see a new repository. One that is there already stays as it is.
        revision: branch to commit to, made if there is none; the main one if not given.
        title: first line of the commit's message.
        description: the rest of it.

    Raises:
        HubError: not logged in, not allowed, not found, no network, or the repository can be seen by everybody and
            `public` is not set; nothing was uploaded.
        RunError: the Hub failed.
    """
    check_access()
    api = HfApi(library_name="embedtune")
    with _explained(repo, revision):
        api.create_repo(repo, private=not public, exist_ok=True)
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo, branch=revision, exist_ok=True)
        before = api.model_info(repo, revision=revision)
        if not before.private and not public:
            raise HubError(
                f"'{repo}' is there already and everybody can see it; nothing was uploaded.\n"
                "Type --public if that is what you want, or name another repository."
            )
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        commit = api.create_commit(
            repo, operations, commit_message=title, commit_description=description, revision=revision
        )
    place = "" if revision is None else f"/tree/{revision}"
    return Upload(
        url=f"{constants.ENDPOINT}/{repo}{place}", changed=commit.oid != before.sha, private=bool(before.private)
    )


_LOG_IN = "Type:  hf auth login   or set HF_TOKEN to a token with write access."


def _unreachable() -> str:
    return f"{constants.ENDPOINT} can't be reached"


@contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    """What the Hub's client raises, as a message that says what to type."""
    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        # What goes wrong with one file is wrapped once more.
        wrapped = not isinstance(error, HTTPError) and isinstance(error.__cause__, HTTPError)
        cause = error.__cause__ if wrapped else error
        if isinstance(cause, HfHubHTTPError):
            raise _refusal(cause, repo, revision) from error
        if isinstance(cause, (HTTPError, OSError)):
            raise HubError(
                f"{_unreachable()}: {_first_line(cause)}.\n"
                "Check the network; the same command again goes on with what is missing."
            ) from error
        raise RunError(f"the upload to '{repo}' failed: {_first_line(error)}.") from error


def _refusal(error: HfHubHTTPError, repo: str, revision: str | None) -> HubError | RunError:
    status = error.response.status_code
    if status == 401:
        return HubError(f"{constants.ENDPOINT} does not accept the token that is in use (401).\n{_LOG_IN}")
    if status == 403:
        return HubError(
            f"the token in use may not write to '{repo}' (403).\n"
            f"Check the owner's name, or give the token write access. {_LOG_IN}"
        )
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"'{repo}' has no revision '{revision}' (404).\nType:  --revision BRANCH, or leave it out.")
    if status == 404:
        return HubError(f"'{repo}' can't be found or made (404).\nCheck the owner's name: OWNER/NAME.")
    if status in (409, 412):
        return HubError(f"'{repo}' was changed by somebody else meanwhile ({status}).\nType the same command again.")
    said = error.server_message or _first_line(error)
    if status < 500:
        return HubError(f"{constants.ENDPOINT} refuses the upload to '{repo}' ({status}): {said}")
    return RunError(f"{constants.ENDPOINT} failed ({status}): {said}\nType the same command again later.")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
