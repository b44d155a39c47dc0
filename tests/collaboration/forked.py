"""Writers that are processes: `python forked.py race|kill DIRECTORY COUNT SEED`."""

import hashlib
import os
import random
import signal
import sys
import time
from pathlib import Path

from fusion_jax.collaboration.local_store import LocalStore


def fork(action):
    child = os.fork()
    if child:
        return child
    try:
        action()
        os._exit(0)
    except BaseException as error:
        print(error, file=sys.stderr)
        os._exit(1)


def race(folder, count):
    """All begin at one time; each writes what it found out beside the store."""
    start = time.time() + 0.3

    def run(number):
        store = LocalStore(folder / "store")
        said = os.urandom(50_000)
        time.sleep(start - time.time())
        won = store.put_if_absent("bases/000001.json", said)
        seen = store.read("bases/000001.json")
        for _ in range(10):
            while True:
                held = store.read_versioned("count")
                more = str(int(held.data) + 1 if held else 1).encode()
                if store.compare_and_set("count", more, held and held.version):
                    break
        line = f"{won} {won and seen == said} {hashlib.sha256(seen).hexdigest()}"
        (folder / f"result-{number}").write_text(line)

    for child in [fork(lambda n=number: run(n)) for number in range(count)]:
        assert os.waitpid(child, 0)[1] == 0


def kill(folder, count, seed):
    """Kills writers at random moments; each object is named by its content."""
    chance = random.Random(seed)

    def write(number):
        store = LocalStore(folder / "store", hard_links=number % 2 == 0)
        file = folder / "large"
        while True:
            data = os.urandom(300_000)
            store.put_if_absent(f"small/{hashlib.sha256(data).hexdigest()}", data)
            file.write_bytes(data * 10)
            store.upload(file, f"large/{hashlib.sha256(data * 10).hexdigest()}")
            held = store.read_versioned("set")
            text = hashlib.sha256(data).hexdigest().encode() + data.hex().encode()
            store.compare_and_set("set", text, held and held.version)

    for number in range(count):
        child = fork(lambda number=number: write(number))
        time.sleep(chance.uniform(0.005, 0.08))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL


if __name__ == "__main__":
    task, path, how_many, seed_ = sys.argv[1:]
    if task == "race":
        race(Path(path), int(how_many))
    else:
        kill(Path(path), int(how_many), int(seed_))
