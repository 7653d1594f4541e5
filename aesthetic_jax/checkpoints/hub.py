"""Finds a checkpoint by path, or downloads it by its name on the Hugging Face hub."""

import functools
import os
import re
from typing import NamedTuple
from urllib.parse import urlsplit

from aesthetic_jax.errors import UserError
from aesthetic_jax.files import in_object_store

_SCHEME = "hf://"
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*")

# No pickles and no code. A checkpoint is a flat folder, so subfolders are ignored.
_ALLOWED = ("*.safetensors", "*.json", "*.jinja", "merges.txt")
_IGNORED = ("*/*",)

_LOG_IN = "run `hf auth login` or set HF_TOKEN"


class HubModel(NamedTuple):
    """A model of the Hugging Face hub."""

    repo: str  # OWNER/NAME
    revision: str | None = None  # branch, tag or commit; None: the main branch


def local_checkpoint(name_or_path: str) -> str:
    """Returns a local directory for a checkpoint given by path or by its name on the hub.

    Args:
        name_or_path: an existing path or a URL such as gs://, returned unchanged; or a model of the
            hub, `OWNER/NAME` (unless such a path exists) or `hf://OWNER/NAME[@REVISION]`, whose
            safetensors, JSON and tokenizer files are downloaded into the Hugging Face cache. Later
            calls of this process return the same snapshot. On several hosts each downloads its own.

    Raises:
        UserError: no such path, model or revision; the model is gated; or the hub can't be reached
            and the model is not in the cache.
    """
    model = parse_hub_name(name_or_path)
    if name_or_path.startswith(_SCHEME):
        if model is None:
            raise UserError(
                f"{name_or_path}: is not a model of the hub; write {_SCHEME}OWNER/NAME or "
                f"{_SCHEME}OWNER/NAME@REVISION"
            )
        return _download(name_or_path, model)
    if in_object_store(name_or_path) or os.path.exists(name_or_path):
        return name_or_path
    if model is None:
        raise UserError(
            f"{name_or_path}: there is no such directory; correct the path, or name a model of the "
            f"Hugging Face hub as OWNER/NAME or {_SCHEME}OWNER/NAME@REVISION"
        )
    return _download(name_or_path, model)


def parse_hub_name(name: str) -> HubModel | None:
    """Parses `OWNER/NAME` or `hf://OWNER/NAME[@REVISION]`; None for anything else."""
    repo, revision = name, None
    if name.startswith(_SCHEME):
        repo, at, revision = name.removeprefix(_SCHEME).partition("@")
        revision = revision if at else None
    # The cache makes folders and files from both: ".." would lead out of it.
    if not _REPO.fullmatch(repo) or ".." in repo:
        return None
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        return None
    return HubModel(repo, revision)


def _download(name: str, model: HubModel) -> str:
    """Downloads a model; `name` is what errors call it."""
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]: of httpx or httpx2, by version
    )

    try:
        return _snapshot(model)
    except (HTTPError, HFValidationError, OSError, RuntimeError) as error:  # hf_xet: RuntimeError
        if getattr(error, "errno", None) is not None:
            raise  # local errors, such as a full disk
        reason = _explain(error, model)
    # A mistyped path looks like a model's name, so the message mentions both.
    missing = "" if name.startswith(_SCHEME) else "there is no such directory, and "
    raise UserError(f"{name}: {missing}{reason}")


@functools.cache  # one process must not see two versions of a branch
def _snapshot(model: HubModel) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm

    class TerminalBar(tqdm):
        """A progress bar for terminals only, so that logs hold one line per error."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **({"disable": None} | kwargs))

    return snapshot_download(
        model.repo,
        revision=model.revision,
        allow_patterns=list(_ALLOWED),
        ignore_patterns=list(_IGNORED),
        tqdm_class=TerminalBar,
    )


def _explain(error: BaseException, model: HubModel) -> str:
    """Describes why a download failed and what to do.

    The hub's own messages take several lines and contain URLs, which may carry credentials.
    """
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return f"'{model.repo}' can't be a model of the Hugging Face hub; correct the name"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"the model is gated; accept its terms at {_host()}/{model.repo}, then {_LOG_IN} as "
            "the user who did"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{_host()} has no such model, or it is private; correct the name, or for a private "
            f"model {_LOG_IN}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the model has no revision '{model.revision}'; name a branch, a tag or a commit"
    if isinstance(error, errors.LocalEntryNotFoundError):
        if isinstance(error.__cause__, errors.OfflineModeIsEnabled):
            return (
                "HF_HUB_OFFLINE is set while the cache (HF_HUB_CACHE) holds no complete copy of "
                "the model; download it once with HF_HUB_OFFLINE=0"
            )
        error = error.__cause__ or error
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return (
            f"{_host()} refused your token; log in again with `hf auth login`, or correct HF_TOKEN"
        )
    if status is not None:
        return f"{_host()} answered with HTTP status {status}; try again later"
    return (
        f"the download from {_host()} failed ({type(error).__name__}); check the network and "
        "HF_ENDPOINT and try again, or name a local directory"
    )


def _host() -> str:
    """The hub's host, without the credentials that HF_ENDPOINT may hold."""
    from huggingface_hub import constants

    url = urlsplit(constants.ENDPOINT)
    return f"{url.hostname}:{url.port}" if url.port else url.hostname or "the Hugging Face hub"
