import pytest

from cs330ray.course.learners import answers


@pytest.mark.parametrize(
    ("prediction", "answer", "same"),
    [
        ("bathroom", "bathroom", True),
        (" The  Bathroom!", "bathroom", True),
        ("bathrooms", "bathroom", False),
        ("a theatre", "theatre", True),  # an article is a word: "the" of "theatre" stays
        ("", "bathroom", False),
        ("apple,milk", "apple milk", False),  # as SQuAD does: a comma leaves no blank
    ],
)
def test_answers_match_without_case_articles_punctuation_and_blanks(prediction, answer, same):
    assert answers.exact_match(prediction, answer) is same


@pytest.mark.parametrize(
    ("prediction", "answer", "f"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("dogs ran", "the cat sat", 0.0),
        ("the cat", "the cat sat down", 2 / 3),  # precision 1, recall 1/2
        ("cats", "cat", 1.0),  # stemmed
        ("the the the", "the cat", 2 / 5),  # clipped: one of three, one of two
        ("", "the cat", 0.0),
    ],
)
def test_rouge1_is_the_f_of_words_in_common(prediction, answer, f):
    assert answers.rouge1(prediction, answer) == pytest.approx(f)
