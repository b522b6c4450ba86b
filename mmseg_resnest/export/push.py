# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A published folder to a Hugging Face hub, by the hub's own client (the extra ``hub``)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import UserError
from ..io.packages import needs_extra
from ..io.text import error_words
from ..weights.hub import (
    CONFIG_FILE,
    SCHEME,
    SUMS_FILE,
    HubName,
    endpoint,
    hub_name,
    sums_of,
)
from .publish import FILES, TRAINING_CONFIG_FILE

__all__ = ["check_push", "push"]


def check_push(repo: str, revision: str | None = None) -> HubName:
    """Where a model would go; a UserError if that is not a name, or the hub's client is missing."""
    with needs_extra("hub"):
        import huggingface_hub  # noqa: F401
    named = repo.removeprefix(SCHEME) + (f"@{revision}" if revision else "")
    with contextlib.suppress(UserError):
        if "@" not in repo:
            return hub_name(SCHEME + named)
    said = "is not OWNER/NAME, with a branch by --revision BRANCH"
    raise UserError("argument", f"--push {named}", said)


def push(
    folder: str | os.PathLike[str],
    repo: str,
    private: bool = False,
    revision: str | None = None,
) -> str:
    """Put a folder that :func:`.publish` wrote into a model repository of a hub, as one commit.

    The repository and the branch are created if they do not exist. The list of SHA-256 sums is made
    of the files as they are now. The token is the one of the hub's client: ``HF_TOKEN``, or that of
    ``hf auth login``.

    Args:
        folder: The folder.
        repo: ``OWNER/NAME``.
        private: A new repository is private. One that is public already is refused.
        revision: The branch; None is ``main``.

    Returns:
        The name of what was put there, ``hf://OWNER/NAME@COMMIT``.

    Raises:
        UserError: The hub's client is not installed, a file is missing, the repository holds
            another model, the hub refuses the token or cannot be reached.
    """
    name = check_push(repo, revision)
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    place = Path(folder)
    for file in FILES:
        if not (place / file).is_file():
            raise UserError("not-found", place / file, "copy the published folder completely")
    contents: dict[str, Any] = {file: os.fspath(place / file) for file in FILES}
    contents[SUMS_FILE] = sums_of(place, FILES).encode()
    operations = [CommitOperationAdd(file, content) for file, content in contents.items()]
    api = HfApi(endpoint=endpoint(), library_name="mmseg-resnest")
    try:
        try:
            api.create_repo(name.repo, private=private or None)
        except HfHubHTTPError as error:
            if error.response.status_code not in (403, 409):  # not one that is there already
                raise
            try:
                there = api.model_info(name.repo)
            except HfHubHTTPError:
                raise error from None
            _check_there(there, name, private)
        if revision and revision != "main" and not revision.startswith("refs/"):
            api.create_branch(name.repo, branch=revision, exist_ok=True)
        done = api.create_commit(
            name.repo, operations, commit_message="Publish a model", revision=name.revision
        )
    except UserError:
        raise
    except Exception as error:  # of the hub, its client, the network
        raise _failure(error, name) from error
    return str(HubName(name.repo, done.oid))


def _check_there(info: Any, name: HubName, private: bool) -> None:
    """Refuse a repository that is there for something else."""
    if private and info.private is False:
        message = "is there already and public; make it private on its page, or give another name"
        raise UserError("output-exists", f"{SCHEME}{name.repo}", message)
    files = {one.rfilename for one in info.siblings or ()}
    if CONFIG_FILE in files and not files & {SUMS_FILE, TRAINING_CONFIG_FILE}:
        message = f"holds another model (a {CONFIG_FILE} without {SUMS_FILE}); give another name"
        raise UserError("output-exists", f"{SCHEME}{name.repo}", message)


def _failure(error: Exception, name: HubName) -> UserError:
    """What went wrong, without addresses, which may hold signatures."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    host = urlsplit(endpoint()).netloc
    if status is None:
        message = f"cannot be pushed to {host} ({error_words(error, 200)}); "
        message += "try again: nothing is there in part"
        return UserError("network", f"{SCHEME}{name.repo}", message)
    said = " ".join(str(getattr(error, "server_message", "") or "").split())[:200]
    message = f"{host} answers {status}" + (f" ({said})" if said else "")
    if status in (401, 403):
        message += "; set HF_TOKEN to a token that may write there, or run: hf auth login"
    return UserError("network", f"{SCHEME}{name.repo}", message)
