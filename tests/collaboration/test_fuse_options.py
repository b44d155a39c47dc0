"""Options of a fuse that are refused before anything is read."""

import pytest

from fusion_jax import MERGES
from fusion_jax.collaboration.fuse_options import check
from fusion_jax.collaboration.fusing import FuseOptions


@pytest.mark.parametrize(
    "options, fault",
    [
        ({"method": "krun"}, "unknown method 'krun'; did you mean krum"),
        ({"method": "mean", "options": {"trim": 0.1}}, "trim: mean has no options"),
        (
            {"method": "trimmed_mean", "options": {"trimm": 0.1}},
            "trimm: trimmed_mean has no such option; did you mean trim",
        ),
        ({"optimizer": "adm"}, "unknown optimizer 'adm'; did you mean adam"),
        (
            {"optimizer": "adam", "optimizer_options": {"beta": 0.9}},
            "adam has no option 'beta'; did you mean beta",
        ),
        (
            {"optimizer": "adam", "optimizer_options": {"tau": 0}},
            "tau: 0 is no number greater than 0",
        ),
        ({"server_rate": 0}, "server_rate: 0 is no finite number greater than 0"),
        ({"clip": -1, "discount": float("nan")}, "discount: nan.*; clip: -1"),
        ({"method": "wise_ft"}, "the mean with a server_rate"),
    ],
)
def test_options_are_refused_with_the_nearest_that_there_are(options, fault):
    with pytest.raises(ValueError, match=fault):
        check(FuseOptions(**options))


def test_options_that_all_methods_have_pass():
    for method in [*MERGES, "linear", "mean"]:
        if method != "wise_ft":
            check(FuseOptions(method))
