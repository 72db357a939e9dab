"""What goes wrong between a program and the model hub, in one sentence. It imports none of the hub's packages.

transformers, datasets and huggingface_hub wrap each other's errors; the first cause that says something is looked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from spillover.errors import UserError

MISSING_REVISION = {"RevisionNotFoundError", "RevisionResolutionError"}
NOT_THERE = {"RepositoryNotFoundError", "GatedRepoError", "DatasetNotFoundError"}
NO_CONNECTION = {
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "ConnectionError",
    "ConnectError",
    "ConnectTimeout",
    "ReadTimeout",
    "ConnectionRefusedError",
}
FAILED = "HfHubHTTPError"


class Unreachable(UserError):
    """A model or data set of the hub that cannot be had."""


@contextmanager
def reached(kind: str, name: str, revision: str | None, key: str) -> Iterator[None]:
    """Within the block, failing to get `name` (a "model" or "data set") is one sentence; `key` is its place in the
    configuration. Any other error passes."""
    try:
        yield
    except Exception as error:
        sentence = explain(error, kind, name, revision, key)
        if sentence is None:
            raise
        raise Unreachable(sentence) from None


def explain(error: BaseException, kind: str, name: str, revision: str | None, key: str) -> str | None:
    """The sentence for an error, None for one that is not about reaching the hub."""
    causes = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    names = {type(cause).__name__: cause for cause in causes}
    if names.keys() & MISSING_REVISION:
        return (
            f"The {kind} {name} has no revision {revision} on the hub: correct the revision beside {key} (a commit "
            "that `Files and versions` of its page lists)"
        )
    if names.keys() & NOT_THERE:
        return (
            f"The {kind} {name} is not on the hub, or needs permission: correct {key}, or set HF_TOKEN to a token "
            "that may read it"
        )
    if names.keys() & NO_CONNECTION:
        return (
            f"The {kind} {name} is not in the local cache and the hub cannot be reached: run this where there is a "
            f"network, fill the cache (HF_HOME) there first, or name a local copy in {key}"
        )
    if failure := names.get(FAILED):
        return (
            f"The hub failed to give the {kind} {name}: {str(failure).splitlines()[0]}. Run the same command again"
            f" later, or name a local copy in {key}"
        )
    return None
