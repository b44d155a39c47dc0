import jax
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.models import HEADS, EncoderConfig, build_model
from fusion_jax.models.config import FAMILIES
from fusion_jax.models.names import (
    TRANSFORMS,
    encoder_entries,
    head_entries,
    kinds_of_architecture,
)

TYPES = {"bert": 2, "roberta": 1, "distilbert": 0}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [kind for kind in HEADS if kind != "choice"])
def test_every_leaf_has_one_name_and_every_name_one_leaf(family, kind):
    config = EncoderConfig(family, 30, 8, 3, 2, 12, 10, TYPES[family])
    entries = encoder_entries(config, prefixed=True) + head_entries(config, kind)
    leaves = [entry.leaf for entry in entries]
    sources = [entry.source for entry in entries]
    assert len(set(leaves)) == len(leaves) and len(set(sources)) == len(sources)
    shapes = jax.eval_shape(build_model(config, kind, 2).init, jax.random.key(0))
    poolers = {"encoder/pooler/kernel", "encoder/pooler/bias"}
    assert set(trees.flatten(shapes)) | poolers == set(leaves) | poolers
    prefix = f"{family}."
    assert all(
        source.startswith(prefix) == leaf.startswith("encoder/")
        for source, leaf, _ in entries
    )


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_transforms_are_their_own_inverses(name):
    x = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(TRANSFORMS[name](TRANSFORMS[name](x)), x)


def test_bare_encoders_stand_for_no_kind():
    assert kinds_of_architecture("bert", "BertModel") == ()
    assert kinds_of_architecture("bert", "BertForMaskedLM") == ()
    assert kinds_of_architecture("roberta", "RobertaForTokenClassification") == (
        "token",
    )
