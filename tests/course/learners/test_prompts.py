import pytest

from cs330ray.course.learners import prompts
from cs330ray.errors import SpecError

STORY = "Mary moved to the bathroom. Where is Mary?"


@pytest.mark.parametrize(
    ("style", "template", "asked"),
    [
        ("qa", None, "Mary moved to the bathroom. Where is Mary? In the"),
        ("none", None, "Mary moved to the bathroom. Where is Mary?"),
        ("tldr", None, "Mary moved to the bathroom. Where is Mary? TL;DR:"),
        ("custom", "Story: {text} Answer: ", "Story: Mary moved to the bathroom. Where is Mary? Answer:"),
    ],
)
def test_a_question_is_put_as_its_style_says_and_never_ends_in_a_blank(style, template, asked):
    assert prompts.question(style, STORY, template) == asked


def test_a_text_may_hold_what_a_template_marks_its_place_with():
    assert prompts.question("custom", "a {text} b", "<{text}>") == "<a {text} b>"


@pytest.mark.parametrize("template", [None, "no place"])
def test_a_custom_prompt_without_a_place_for_the_text_is_refused(template):
    with pytest.raises(SpecError, match=r"template: prompt=custom needs a template with \{text\}"):
        prompts.question("custom", STORY, template)


@pytest.mark.parametrize(
    ("answer", "shown"),
    [("bathroom", " bathroom."), ("It rained.", " It rained."), ("Who won?", " Who won?"), ("He won!", " He won!")],
)
def test_an_example_ends_in_its_answer_and_one_mark(answer, shown):
    assert prompts.shot("none", "Text", answer) == "Text" + shown


def test_a_prompt_is_its_examples_and_the_question_with_one_blank_between():
    shots = [prompts.shot("qa", f"Where is {name}?", "hall") for name in ("A", "B")]
    whole = prompts.prefix(shots) + prompts.question("qa", "Where is C?")
    assert whole == "Where is A? In the hall. Where is B? In the hall. Where is C? In the"


def test_without_examples_the_question_stands_alone():
    assert prompts.prefix([]) == ""


@pytest.mark.parametrize(
    ("style", "template", "written", "text"),
    [
        ("qa", None, " John ran. Where is John? In the hall. Mary", "John ran. Where is John?"),
        ("none", None, " John ran. Where is John? hall. Mary ran. Where", "John ran. Where is John?"),
        ("none", None, " John ran", "John ran"),
        ("tldr", None, " A document. TL;DR: a summary.", "A document."),
        ("custom", "Story: {text} Answer:", " Story: John ran. Answer: hall.", "John ran."),
        ("qa", None, "  ", ""),
    ],
)
def test_the_first_text_is_cut_out_of_what_a_model_wrote(style, template, written, text):
    assert prompts.first_text(style, written, template) == text


@pytest.mark.parametrize(
    ("style", "template", "ending"),
    [("qa", None, "In the"), ("none", None, "?"), ("tldr", None, "TL;DR:"), ("custom", "{text} So: ", "So:")],
)
def test_a_question_is_known_by_its_ending(style, template, ending):
    assert prompts.ending(style, template) == ending
