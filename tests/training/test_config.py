"""FitConfig refuses what makes no sense, all of it at once."""

import pytest

from fusion_jax.training.config import FitConfig


def test_every_wrong_option_is_named_in_one_error():
    with pytest.raises(ValueError) as caught:
        FitConfig(
            schedule="stairs",
            select="luck",
            learning_rate=0.0,
            warmup_fraction=1.0,
            batch_size=6,
            accumulate=4,
            frozen=("head/(",),
            epochs=0,
        )
    message = str(caught.value)
    for option in (
        "schedule",
        "select",
        "learning_rate",
        "warmup_fraction",
        "accumulate = 4: must divide batch_size = 6",
        "'head/('",
        "epochs = 0 and head_epochs = 0",
    ):
        assert option in message


def test_a_misspelled_option_is_an_error():
    with pytest.raises(TypeError, match="learning_rat"):
        FitConfig(learning_rat=1e-3)  # type: ignore[call-arg]


def test_the_json_form_makes_the_same_config():
    config = FitConfig(frozen=["a/.*"], buckets=[8, 16], patience=2)  # type: ignore[arg-type]
    assert FitConfig(**config.to_json()) == config
