"""The fuse against the algebra of ColD Fusion: real files, bits."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import hypothesis
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

from fusion_jax.checkpoints.object_files import file_sha256
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.collaboration import weights_file
from fusion_jax.collaboration.contributions import opened
from fusion_jax.collaboration.fusing import FuseOptions, Member, fuse
from fusion_jax.collaboration.mean import mean_delta
from fusion_jax.collaboration.weights_file import open_weights, pieces, rounded
from tests.collaboration.bodies import member, save
from tests.collaboration.fuses import DTYPES, MEAN, fused, mean_of, round_of, wide


def equal_bits(a, b):
    assert list(a) == list(b) or set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(
            a[name].reshape(-1).view(np.uint8), b[name].reshape(-1).view(np.uint8), name
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_contributor_gives_that_contributor(tmp_path, dtype):
    base, _, files, tensors = round_of(tmp_path, 1, dtype)
    found, made = fused(base, [member(files[0])], MEAN, tmp_path)
    equal_bits(found, tensors[0])
    assert made.sha256 == file_sha256(files[0])
    assert made.weights == {file_sha256(files[0]): 1.0}


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("count", [2, 5, 35])
def test_copies_of_the_base_give_the_base_bit_for_bit(tmp_path, dtype, count):
    base, tensors, _, _ = round_of(tmp_path, 0, dtype)
    found, made = fused(base, [member(base)] * count, MEAN, tmp_path)
    equal_bits(found, tensors)
    assert made.sha256 == file_sha256(base)
    assert made.weights[file_sha256(base)] == pytest.approx(1)


def test_negative_zero_stays(tmp_path):
    tensors = {"w": np.array([-0.0, 0.0, 1.0], np.float32)}
    base = save(tmp_path / "base.safetensors", tensors)
    found, _ = fused(base, [member(base)] * 3, MEAN, tmp_path)
    equal_bits(found, tensors)


def test_the_order_of_the_listing_does_not_matter(tmp_path):
    base, _, files, _ = round_of(tmp_path, 8)
    options = [
        MEAN,
        FuseOptions(server_rate=0.7, clip=1),
        FuseOptions("geometric_median"),
        FuseOptions("dare", options={"density": 0.5}),
    ]
    for option in options:
        _, one = fused(base, [member(x) for x in files], option, tmp_path)
        _, two = fused(base, [member(x) for x in files[::-1]], option, tmp_path)
        assert one.sha256 == two.sha256
        assert one.weights == two.weights


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    shape=st.lists(st.integers(0, 5), max_size=3),
    count=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_the_mean_is_the_float64_mean_rounded_once(
    tmp_path_factory, shape, count, dtype, seed
):
    folder = tmp_path_factory.mktemp("mean")
    random = np.random.default_rng(seed)
    held = [
        {"w": np.asarray(random.normal(size=shape)).astype(dtype), "n": np.arange(2)}
        for _ in range(count)
    ]
    files = [save(folder / f"{k}.safetensors", x) for k, x in enumerate(held)]
    found, _ = fused(files[0], [member(x) for x in files], MEAN, folder)
    order = sorted(range(count), key=lambda k: file_sha256(files[k]))
    wanted = rounded(mean_of([held[k]["w"] for k in order]), np.dtype(dtype))
    equal_bits(found, {"w": wanted.reshape(shape), "n": np.arange(2)})


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_the_form_of_deltas_agrees_with_the_mean_within_one_place(tmp_path, dtype):
    base, _, files, _ = round_of(tmp_path, 6, dtype)
    found, _ = fused(base, [member(x) for x in files], MEAN, tmp_path)
    current = open_weights(base)
    contributions = opened(current, [member(x) for x in files], 0.25)
    for name, info in current.tensors.items():
        if not info.floating:
            continue
        for piece in pieces(info.size):
            way = mean_delta(contributions, name, piece)
            values = rounded(current.wide(name, piece) + way, info.dtype)
            plain = found[name].reshape(-1)[piece]
            apart = np.abs(values.astype(np.float64) - plain.astype(np.float64))
            place = np.spacing(np.abs(plain)).astype(np.float64)
            assert (apart <= place).all()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_server_rate_goes_that_share_of_the_way(tmp_path, dtype):
    base, start, files, tensors = round_of(tmp_path, 4, dtype)
    options = FuseOptions(server_rate=0.3)
    found, _ = fused(base, [member(x) for x in files], options, tmp_path)
    for name, values in wide(start).items():
        wanted = 0.7 * values + 0.3 * mean_of([x[name] for x in tensors])
        np.testing.assert_array_equal(found[name], rounded(wanted, np.dtype(dtype)))


def test_contributions_unlike_the_base_are_refused_all_at_once(tmp_path):
    base, start, files, tensors = round_of(tmp_path, 3)
    save(files[0], {**tensors[0], "classifier.weight": np.zeros((2, 8), np.float32)})
    save(files[1], {**tensors[1], "norm.weight": np.zeros(9, np.float32)})
    ids = {"embeddings.position_ids": start["embeddings.position_ids"] + 1}
    save(files[2], {**tensors[2], **ids})
    with pytest.raises(CheckpointError) as caught:
        fused(base, [member(x) for x in files], MEAN, tmp_path)
    said = str(caught.value)
    assert "3 differences" in said
    assert "classifier.weight is not in the base" in said
    assert "norm.weight is F32 (9,), in the base F32 (8,)" in said
    assert "position_ids: integers that are not the base's" in said
    assert not (tmp_path / "out.safetensors").exists()


def test_nothing_is_written_where_the_result_is_not_finite(tmp_path):
    base, _, files, tensors = round_of(tmp_path, 3)
    tensors[1]["norm.weight"][3] = np.nan
    save(files[1], tensors[1])
    members, state = [member(x) for x in files], tmp_path / "state.safetensors"
    for options in (MEAN, FuseOptions(optimizer="momentum"), FuseOptions("ties")):
        with pytest.raises(CheckpointError, match=r"norm\.weight"):
            fused(base, members, options, tmp_path, state_out=state)
    held = sorted(x.name for x in tmp_path.iterdir())
    assert held == ["base.safetensors", *(f"c{k}.safetensors" for k in range(3))]


def test_a_fuse_of_nobody_or_of_a_late_one_without_its_base_is_refused(tmp_path):
    base, _, files, _ = round_of(tmp_path, 1)
    with pytest.raises(ValueError, match="no contribution"):
        fused(base, [], MEAN, tmp_path)
    with pytest.raises(ValueError, match="1 rounds old"):
        fused(base, [Member("0", files[0], age=1)], MEAN, tmp_path)
    with pytest.raises(ValueError, match="krum"):
        fused(base, [member(files[0])], FuseOptions("krum"), tmp_path)


@pytest.mark.parametrize("options", [MEAN, FuseOptions(clip=1.0, server_rate=0.5)])
def test_memory_does_not_grow_with_the_number_of_contributors(
    tmp_path, options, monkeypatch
):
    monkeypatch.setattr(weights_file, "SPAN", 2**14)
    tensors = {"w": np.ones((2**10, 2**9), np.float32)}
    base = save(tmp_path / "base.safetensors", tensors)
    random = np.random.default_rng(0)
    files = []
    for k in range(32):
        w = tensors["w"] + 0.01 * random.normal(size=tensors["w"].shape)
        files.append(save(tmp_path / f"{k}.safetensors", {"w": w.astype(np.float32)}))
    peaks = {}
    for count in (2, 32):
        members = [member(x) for x in files[:count]]
        tracemalloc.start()
        fuse(base, members, options, tmp_path / "out.safetensors")
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[32] < peaks[2] + 2**17, peaks  # headers and shares, no piece more
    assert peaks[32] < 2**21, peaks  # of files with 2 MiB each


RESIDENT = """
import sys
from pathlib import Path
from fusion_jax.collaboration.fusing import FuseOptions, Member, fuse
files = [Path(x) for x in sys.argv[3:]]
members = [Member(x.name, x) for x in files]
def peak():
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024
Path("/proc/self/clear_refs").write_text("5")
before = peak()
fuse(Path(sys.argv[1]), members, FuseOptions(), Path(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_itself_holds_no_more_with_32_contributors(tmp_path):
    tensors = {"w": np.ones((2**11, 2**11), np.float32)}  # 16 MiB
    base = save(tmp_path / "base.safetensors", tensors)
    files = []
    for k in range(32):
        tensors["w"][k] += 1
        files.append(str(save(tmp_path / f"{k}.safetensors", tensors)))
    grown = []
    for count in (2, 32):
        out = str(tmp_path / f"out{count}")
        done = subprocess.run(
            [sys.executable, "-c", RESIDENT, str(base), out, *files[:count]],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        )
        grown.append(int(done.stdout))
    assert grown[1] < grown[0] + 2**22, grown
    assert grown[1] < 2**26, grown
