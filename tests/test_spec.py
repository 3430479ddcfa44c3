"""The notation: round trip, and one clear line for everything that is not of it."""

import pytest

from noisesched import spec


@pytest.mark.parametrize(
    "text",
    [
        "cosine",
        "cosine(s=0.01)",
        "piecewise([12, -3.5, -inf])",
        "shifted(zero_terminal(linear(beta_min=0.2)), by=-1.5)",
        "f('text', None, True, [[1], [2]])",
        "g([])",
    ],
)
def test_round_trip(text):
    assert str(spec.parse(text)) == text and spec.parse(str(spec.parse(text))) == spec.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cosine(",
        "a.b",
        "a + b",
        "f(x=1, x=2)",
        "f(**{})",
        "f(lambda: 1)",
        "f(1 + 2)",
        "f(x for x in y)",
        "1",
        "'cosine'",
        "f(-'a')",
        "f({1: 2})",
        "f(g.h)",
        "__import__('os').system('true')",
        "(" * 300 + ")" * 300,
        "f(" * 5000,
        7,
        "a\x00b",
        "f(*a)",
    ],
)
def test_refused_in_one_line(text):
    with pytest.raises(ValueError) as error:
        spec.parse(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_bind_names_the_fault():
    known = {"linear": lambda u, low=0.1: None}
    spec.bind(spec.parse("linear(0.2)"), known, "schedule")
    with pytest.raises(ValueError, match=r"unknown schedule 'linaer' \(did you mean 'linear'\?\); known: linear"):
        spec.bind(spec.parse("linaer"), known, "schedule")
    for wrong in ("linear(hgih=1)", "linear(1, 2)", "linear(1, low=2)"):
        with pytest.raises(ValueError, match=r"linear takes \(low=0.1\)"):
            spec.bind(spec.parse(wrong), known, "schedule")


def test_a_list_in_a_file_may_have_brackets_and_commas(tmp_path):
    for text in ("80 20\n5", "[80.0, 20.0, 5.0]\n", "(80; 20; 5)"):
        (tmp_path / "levels.txt").write_text(text)
        assert spec.read_numbers(str(tmp_path / "levels.txt")) == (80, 20, 5)
    (tmp_path / "levels.txt").write_text("[80, twenty]")
    with pytest.raises(ValueError, match="cannot read numbers"):
        spec.read_numbers(str(tmp_path / "levels.txt"))
