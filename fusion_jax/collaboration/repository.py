"""A weight repository: bases that follow one another, on plain storage.

There is no server. What a reader trusts is named by a manifest, and a base is promoted
by the one act of creating its manifest, which only one writer can do.

The protocol is that of ColD Fusion (Don-Yehiya et al. 2023, arXiv:2212.01378, 2.3).
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusion_jax import atomic
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints import manifests
from fusion_jax.checkpoints.manifests import (
    BaseManifest,
    ContributionManifest,
    ManifestError,
    TensorFile,
)
from fusion_jax.checkpoints.object_files import described, file_sha256
from fusion_jax.checkpoints.tensors import WEIGHTS
from fusion_jax.collaboration import layout, marks
from fusion_jax.collaboration.store import ObjectMissing, Store, StoreError
from fusion_jax.collaboration.stores import open_store, prefixed

MOST_MANIFEST = 2**24
"""Bytes of a contribution's manifest: of more, no one reads any."""


class RepositoryError(StoreError):
    """A repository is not what it should be; names the object and the remedy."""


@dataclass(frozen=True)
class Found:
    """A contribution as it lies there.

    Attributes:
      name: of its manifest.
      manifest: what it says; None where it cannot be read.
      sha256: of the manifest's bytes.
      fault: why it cannot be read; '' otherwise.
      newer: whether a newer version of fusion_jax could.
    """

    name: str
    manifest: ContributionManifest | None
    sha256: str
    fault: str = ""
    newer: bool = False


@dataclass(frozen=True)
class Repository:
    """Bases and contributions in one store.

    Attributes:
      store: where it lies.
      cache: local folder of what was downloaded; everything in it is named by its
        content and may be removed at any time.
    """

    store: Store
    cache: Path
    _bases: dict[int, BaseManifest] = field(default_factory=dict, repr=False)
    _contributions: dict[str, Found] = field(default_factory=dict, repr=False)
    _checked: set[str] = field(default_factory=set, repr=False)

    @property
    def url(self) -> str:
        """Where it lies."""
        return self.store.url

    def current(self) -> BaseManifest:
        """The newest base: the last of the unbroken row of rounds.

        Raises:
          RepositoryError: there is no base.
        """
        round_ = marks.read(self.store)
        if self.store.size(layout.base_manifest(round_)) is None:
            round_ = 0
        while self.store.size(layout.base_manifest(round_ + 1)) is not None:
            round_ += 1
        return self.base(round_)

    def base(self, round_: int) -> BaseManifest:
        """The manifest of a round's base, which never changes.

        Raises:
          RepositoryError: there is none.
          ManifestError: it is damaged.
        """
        if round_ not in self._bases:
            name = layout.base_manifest(round_)
            try:
                data = self.store.read(name)
            except ObjectMissing as error:
                raise RepositoryError(
                    f"{self.url}: there is no base {round_} ({name})"
                ) from error
            manifest = manifests.load(BaseManifest, data, f"{self.url}/{name}")
            if manifest.round != round_:
                raise ManifestError(
                    f"{self.url}/{name}: says that it is of round {manifest.round}; it "
                    "was copied or edited: restore the object"
                )
            self._bases[round_] = manifest
        return self._bases[round_]

    def history(self) -> list[BaseManifest]:
        """All bases from the first to the newest."""
        return [self.base(round_) for round_ in range(self.current().round + 1)]

    def contributions(
        self, round_: int | None = None, *, known: Collection[str] = ()
    ) -> list[Found]:
        """What was contributed, in the order of names, rounds first.

        Args:
          round_: of the base that it began from; None for all.
          known: names of manifests that need not be read again.
        """
        prefix = layout.CONTRIBUTIONS
        if round_ is not None:
            prefix = layout.contributions(round_)
        return [
            self.contribution(name)
            for name in self.store.list(prefix)
            if name.endswith(f"/{layout.MANIFEST}") and name not in known
        ]

    def contribution(self, name: str) -> Found:
        """One contribution by the name of its manifest; a fault of it is told.

        Manifests never change, so one that was read is not read again.
        """
        if name not in self._contributions:
            self._contributions[name] = self._read_contribution(name)
        return self._contributions[name]

    def _read_contribution(self, name: str) -> Found:
        source = f"{self.url}/{name}"
        size = self.store.size(name) or 0
        if size > MOST_MANIFEST:
            why = f"{source}: {size} bytes; a manifest has at most {MOST_MANIFEST}"
            return Found(name, None, "", why)
        data = self.store.read(name)
        digest = manifests.sha256(data)
        try:
            manifest = manifests.load(ContributionManifest, data, source)
            _check_place(manifest, name, source)
        except ValueError as error:
            newer = isinstance(error, manifests.NewerSchema)
            return Found(name, None, digest, str(error), newer=newer)
        return Found(name, manifest, digest)

    def fetch(self, file: TensorFile) -> Path:
        """A tensor file in the cache, as its manifest says it is.

        What the cache has is looked at once by each process.

        Raises:
          RepositoryError: the object is gone, or another than the manifest says.
        """
        target = self.cache / "tensors" / f"{file.sha256}.safetensors"
        if file.sha256 in self._checked and target.is_file():
            return target
        if not (target.is_file() and file_sha256(target) == file.sha256):
            self._fetch(file, target)
        self._checked.add(file.sha256)
        return target

    def _fetch(self, file: TensorFile, target: Path) -> None:
        place = f"{self.url}/{file.name}"
        stored = self.store.size(file.name)
        # Before the download, which a wrong size could make endless.
        if stored is not None and stored != file.bytes:
            raise RepositoryError(
                f"{place}: the object has {stored} bytes, its manifest says "
                f"{file.bytes}: it was damaged or replaced; restore it from a copy"
            )
        with atomic.file(target) as staging:
            self._download(file.name, staging)
            digest = file_sha256(staging)
            if digest != file.sha256:
                raise RepositoryError(
                    f"{place}: the SHA-256 of the object is {digest[:16]}..., its "
                    f"manifest says {file.sha256[:16]}...: it was damaged or "
                    "replaced; restore it from a copy"
                )

    def base_folder(self, round_: int) -> Path:
        """A base as a local folder that `checkpoints.huggingface.load` opens."""
        base = self.base(round_)
        companions = self.base(0).model
        mark = hashlib.sha256(repr(sorted(companions.items())).encode()).hexdigest()
        target = self.cache / "bases" / f"{base.weights.sha256}-{mark[:16]}"
        if target.is_dir():
            return target
        weights = self.fetch(base.weights)
        with self.scratch() as place:
            made = place / "model"
            self.write_model(made, weights)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.rename(made, target)
            except OSError:
                # Another process of this machine was as fast; both made the same.
                if not target.is_dir():
                    raise
        return target

    def write_model(self, folder: Path, weights: Path) -> None:
        """A folder of weights with config and tokenizer of the repository's bases.

        Of copies: what is done to it does nothing to the cache.
        """
        folder.mkdir()
        shutil.copyfile(weights, folder / WEIGHTS)
        for name, digest in self.base(0).model.items():
            shutil.copyfile(self._companion(name, digest), folder / name)

    def _companion(self, name: str, digest: str) -> Path:
        """A file of all bases, in the cache."""
        target = self.cache / "model" / digest / name
        if not target.is_file():
            with atomic.file(target) as staging:
                self._download(layout.model_file(name, digest), staging)
                if file_sha256(staging) != digest:
                    raise RepositoryError(
                        f"{self.url}/{layout.model_file(name, digest)}: the object is "
                        "not what its name says; restore it from a copy"
                    )
        return target

    def below(self, prefix: str) -> "Repository":
        """Another repository, below a prefix of this one's store."""
        return Repository(prefixed(self.store, prefix), self.cache)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on the cache's disk that is gone at the end of the block."""
        self.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.cache, prefix=".") as place:
            yield Path(place)

    def _download(self, name: str, file: Path) -> None:
        try:
            self.store.download(name, file)
        except ObjectMissing as error:
            raise RepositoryError(
                f"{self.url}/{name}: a manifest names this object and it is not there; "
                "restore it from a copy"
            ) from error


def open_repository(
    url: str | os.PathLike[str], *, cache: str | os.PathLike[str] | None = None
) -> Repository:
    """Opens a repository.

    Args:
      url: folder, file://, s3:// or gs:// of it.
      cache: where downloads are kept; default a folder of this URL in
        $FUSION_JAX_DOWNLOADS, or in ~/.cache/fusion_jax.

    Raises:
      RepositoryError: there is no repository there.
    """
    repository = _at(url, cache)
    if repository.store.size(layout.base_manifest(0)) is None:
        raise RepositoryError(
            f"{repository.url} is no weight repository (it has no "
            f"{layout.base_manifest(0)}); make one by: fusion-jax repository init "
            f"{repository.url} --base MODEL"
        )
    return repository


def init_repository(
    url: str | os.PathLike[str],
    base: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
) -> Repository:
    """Makes a repository of a pretrained encoder; repeated, it finds what is there.

    Args:
      url: folder, file://, s3:// or gs://; made if it is not there.
      base: what `checkpoints.huggingface.load` takes; only its encoder is taken.
      cache: as in `open_repository`.

    Raises:
      RepositoryError: a repository of another base is there.
      CheckpointError, FileNotFoundError: the base cannot be read.
    """
    source = hf.load(base)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        hf.save(
            folder,
            {"encoder": source.params["encoder"]},
            source.config,
            kind=None,
            tokenizer_from=source.path,
        )
        repository = _at(url, cache)
        publish_first(repository, folder, reason=f"base {source.path.name}")
    return repository


def publish_first(repository: Repository, folder: Path, **record: Any) -> None:
    """Makes a folder the base 0 of a repository that is not there yet.

    Args:
      repository: with the place to be.
      folder: of a bare encoder, with a tokenizer.
      record: fields of the base's manifest.

    Raises:
      RepositoryError: a repository of another base is there.
    """
    store = repository.store
    weights = described(folder / WEIGHTS, layout.base_folder(0))
    store.upload(folder / WEIGHTS, weights.name)
    model = {}
    for file in sorted(folder.iterdir()):
        if file.name in (WEIGHTS, "README.md"):
            continue
        model[file.name] = file_sha256(file)
        store.upload(file, layout.model_file(file.name, model[file.name]))
    first = BaseManifest(0, weights, model=model, **{**marks.signature(), **record})
    if not store.put_if_absent(layout.base_manifest(0), manifests.dump(first)):
        there = repository.base(0)
        same = there.weights.sha256 == weights.sha256 and there.model == model
        if not same:
            raise RepositoryError(
                f"{repository.url} is a weight repository already, with another base "
                f"(its weights have SHA-256 {there.weights.sha256[:16]}..., this one "
                f"{weights.sha256[:16]}...); choose another place"
            )


def _at(
    url: str | os.PathLike[str], cache: str | os.PathLike[str] | None
) -> Repository:
    store = open_store(url)
    if cache is None:
        home = (
            os.environ.get("FUSION_JAX_DOWNLOADS") or Path.home() / ".cache/fusion_jax"
        )
        mark = hashlib.sha256(store.url.encode()).hexdigest()[:16]
        cache = Path(home) / "repositories" / mark
    return Repository(store, Path(cache))


def _check_place(manifest: ContributionManifest, name: str, source: str) -> None:
    """Raises where a manifest lies elsewhere, or names what is not its own."""
    place = layout.contribution_folder(
        manifest.base.round, manifest.contributor, manifest.run
    )
    if name != f"{place}{layout.MANIFEST}":
        raise ManifestError(
            f"{source}: by what it says it belongs at {place}: it was copied or edited"
        )
    files = [manifest.weights, manifest.statistics]
    foreign = [f.name for f in files if f is not None and not f.name.startswith(place)]
    if foreign:
        raise ManifestError(
            f"{source}: names {', '.join(foreign)}, outside of its own folder"
        )
