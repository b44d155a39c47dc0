"""Contributors and fusers as processes that a SIGKILL ends at a chosen moment.

A process is forked from a server that has imported everything and touched no device, so
that two hundred of them start in the time of a few.
"""

import multiprocessing
import os
import signal
import sys

from fusion_jax.collaboration.repository import Repository, open_repository
from fusion_jax.collaboration.rounds import NotReady, fuse_round
from fusion_jax.collaboration.store import Conflict
from tests.collaboration.repositories import hand_in

CONTRIBUTED, NOT_READY, CONFLICT = 0, 3, 4

_FORK = multiprocessing.get_context("forkserver")
_FORK.set_forkserver_preload([__name__])

_METHODS = (
    "read",
    "size",
    "list",
    "put_if_absent",
    "upload",
    "download",
    "read_versioned",
    "compare_and_set",
)


class Dying:
    """A store whose process is killed before or after its n-th call."""

    def __init__(self, store, moment):
        self._store, self._moment, self._calls = store, moment, 0
        self.url = store.url

    def __getattr__(self, name):
        method = getattr(self._store, name)
        if name not in _METHODS:
            return method

        def call(*arguments):
            number, self._calls = self._calls, self._calls + 1
            if self._moment == (number, "before"):
                os.kill(os.getpid(), signal.SIGKILL)
            result = method(*arguments)
            if self._moment == (number, "after"):
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call


def start(action, place, moment=None, **options):
    """A running process: `action` is 'contribute' or 'fuse'."""
    # The server's environment is that of its own start.
    given = (action, str(place), moment, options, dict(os.environ))
    process = _FORK.Process(target=_run, args=given)
    process.start()
    return process


def finish(process, timeout=120.0):
    """Its exit code, once it has ended; -9 where it was killed."""
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError("a contributor or fuser hangs")
    code = process.exitcode
    process.close()
    return code


def _run(action, place, moment, options, environment):
    os.environ.update(environment)
    root, cache = place, f"{place}-cache-{os.getpid()}"
    plain = open_repository(root, cache=options.pop("cache", cache))
    repository = Repository(Dying(plain.store, moment), plain.cache)
    try:
        if action == "contribute":
            hand_in(repository, **options)
        else:
            fuse_round(repository, **options)
    except NotReady:
        sys.exit(NOT_READY)
    except Conflict:
        sys.exit(CONFLICT)
