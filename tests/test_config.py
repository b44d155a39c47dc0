import pytest

from fusion_jax.config import parse_options

DEFAULTS = {
    "data": "",
    "target": ("x",),
    "shots": 0,
    "relatedness": 0.7,
    "smoke": False,
    "partial": True,
}


@pytest.mark.parametrize("argument", [None, "", ","])
def test_no_options_give_the_defaults(argument):
    assert parse_options(argument, DEFAULTS) == DEFAULTS


def test_every_option_has_the_type_of_its_default():
    found = parse_options(
        "data=a/b=c,target=A+B,shots=64,relatedness=1,smoke,partial=false", DEFAULTS
    )
    assert found == {
        "data": "a/b=c",
        "target": ("A", "B"),
        "shots": 64,
        "relatedness": 1.0,
        "smoke": True,
        "partial": False,
    }
    assert isinstance(found["relatedness"], float)


def test_an_empty_list_is_no_name():
    assert parse_options("target=", DEFAULTS)["target"] == ()
    assert parse_options("target=A+", DEFAULTS)["target"] == ("A",)


def test_the_defaults_themselves_stay_as_they_were():
    before = dict(DEFAULTS)
    parse_options("shots=1,smoke", DEFAULTS)
    assert before == DEFAULTS


def test_all_mistakes_are_named_at_once_with_the_nearest_option():
    with pytest.raises(ValueError) as refused:
        parse_options("shost=1,shots=few,smoke=maybe,data,zzz=1", DEFAULTS)
    said = str(refused.value)
    assert "'shost' is unknown; did you mean 'shots'?" in said
    assert "'shots=few'" in said
    assert "'smoke=maybe': true or false expected" in said
    assert "'data': a value is missing, write name=value" in said
    assert "'zzz' is unknown." in said or "'zzz' is unknown;" in said
    assert said.endswith("Known: " + ", ".join(DEFAULTS))
