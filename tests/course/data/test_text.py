import gzip
import io
import itertools
import json
import os
import re
import shutil
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cs330ray.course.data import archives, rooms, text, text_archives
from cs330ray.course.data.text import Example
from cs330ray.errors import DataError, SpecError

REAL = os.environ.get("CS330RAY_DATA")  # read before any fixture takes it away
SMALL = 20  # examples to val and to test of the small archives


def real(dataset):
    there = REAL and (Path(REAL) / text_archives.FILES[dataset]).is_file()
    return pytest.mark.skipif(not there, reason=f"CS330RAY_DATA holds no archive of {dataset}")


@pytest.fixture
def published(warm_cache, monkeypatch):
    monkeypatch.setenv("CS330RAY_DATA", str(REAL))


@pytest.fixture
def small(given, monkeypatch):
    """Evaluations of few examples, for archives of few: the directory of archives."""
    monkeypatch.setattr(text, "EVALUATION", SMALL)
    text._split.cache_clear()
    yield given
    text._split.cache_clear()


def parts_of(dataset, data_seed=0, **choices):
    return {part: text.examples(dataset, part, data_seed, **choices) for part in text.PARTS}


def units(examples):
    return {example.unit for example in examples}


def texts(examples):
    return {example.text for example in examples}


def refused(dataset, match):
    with pytest.raises(DataError, match=match) as caught:
        text.pack(dataset)
    assert text_archives.FILES[dataset] in str(caught.value)
    assert "`rooms`" in str(caught.value)
    assert "\n" not in str(caught.value)


# Stories: bAbI


def story(number):
    """Five moves and a question after each, in the publishers' form; in places where no other story goes."""
    random = np.random.RandomState(number)
    lines = []
    for _ in range(5):
        person, place = random.choice(["Mary", "John", "Sandra"]), f"{random.choice(['hall', 'garden'])}{number}"
        lines += [f"{person} went to the {place}.", f"Where is {person}? \t{place}\t{len(lines) + 1}"]
    return lines


def numbered(stories):
    return "".join(f"{at} {line}\n" for lines in stories for at, line in enumerate(lines, 1))


@pytest.fixture
def write_babi(small, monkeypatch):
    """Write an archive whose tasks all have the same twelve stories to train and to test, and files beside them."""

    def write(train=None, test=None, **files):
        train, test = train or [story(at) for at in range(12)], test or [story(at) for at in range(100, 112)]
        questions = {sum("\t" in line for lines in stories for line in lines) for stories in (train, test)}
        monkeypatch.setattr(
            text_archives, "FACTS", text_archives.Facts(questions=max(questions), stories=12, others={})
        )
        for task, (part, stories) in itertools.product(range(1, 21), {"train": train, "test": test}.items()):
            files.setdefault(f"en/qa{task}_some-name_{part}.txt", numbered(stories).encode())
        with tarfile.open(small / text_archives.FILES["babi"], "w:gz") as tar:
            for name, content in files.items():
                if content is not None:
                    info = tarfile.TarInfo(f"tasks_1-20_v1-2/{name}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))

    return write


def test_a_question_stands_after_the_sentences_before_it_without_earlier_questions(write_babi):
    lines = [
        "Mary moved to the bathroom.",
        "John went to the hallway.",
        "Where is Mary? \tbathroom\t1",
        "Mary and  John took the milk.",
        "What does Mary carry? \tmilk,apple\t3 4",
    ]
    write_babi(train=[lines, *(story(at)[:4] for at in range(11))], test=[story(at)[:4] for at in range(100, 112)])
    examples = [one for part in parts_of("babi").values() for one in part if one.unit == "qa1-train-1"]
    assert sorted(examples, key=lambda one: one.text) == [
        Example(
            "qa1-train-1",
            "Mary moved to the bathroom. John went to the hallway. Mary and John took the milk. What does Mary carry?",
            "milk,apple",
        ),
        Example("qa1-train-1", "Mary moved to the bathroom. John went to the hallway. Where is Mary?", "bathroom"),
    ]


def test_a_question_that_is_asked_again_with_no_news_is_taken_once(write_babi):
    again = ["Mary went to the hall.", *["Where is Mary? \thall\t1"] * 4, "Mary left.", "Where is Mary? \thall\t1"]
    write_babi(train=[again, *(story(at) for at in range(11))])
    examples = [one for part in parts_of("babi").values() for one in part if one.unit == "qa1-train-1"]
    assert sorted(one.text for one in examples) == [
        "Mary went to the hall. Mary left. Where is Mary?",
        "Mary went to the hall. Where is Mary?",
    ]


@pytest.mark.parametrize("data_seed", range(4))
def test_stories_are_divided_whole(write_babi, data_seed):
    write_babi()
    parts = parts_of("babi", data_seed)
    assert {part: (len(parts[part]), len(units(parts[part]))) for part in parts} == {
        "train": (40, 8),
        "val": (20, 4),
        "test": (20, 4),
    }
    assert units(parts["train"]) | units(parts["val"]) == {f"qa1-train-{at}" for at in range(1, 13)}
    assert all(unit.startswith("qa1-test-") for unit in units(parts["test"]))


@pytest.mark.parametrize("part", ["val", "test"])
def test_an_evaluation_hangs_on_the_data_seed_alone(write_babi, part):
    write_babi()
    first = text.examples("babi", part, 0)
    text._split.cache_clear()
    assert text.examples("babi", part, 0) == first
    assert text.examples("babi", part, 1) != first


@pytest.mark.parametrize("part", ["val", "test"])
def test_the_first_questions_of_an_evaluation_are_of_as_many_stories_as_can_be(write_babi, part):
    write_babi()
    examples = text.examples("babi", part, 0)
    for at in range(0, SMALL, 4):
        assert len(units(examples[at : at + 4])) == 4
    assert {len(one.text.split(".")) for one in examples[:4]} != {2}  # not the first question of each story


@pytest.mark.parametrize("data_seed", range(4))
def test_a_story_of_the_same_sentences_stands_in_one_part_alone(write_babi, data_seed):
    """Six stories of the train file are in the test file too, three of them with other questions; two stand twice."""
    test = [story(at) for at in range(100, 112)]
    asked = [[line.replace("Where is", "What is the place of") for line in lines] for lines in test[3:6]]
    train = [*test[:3], *asked, story(0), story(0), story(1), *(story(at) for at in range(1, 4))]
    write_babi(train, test)
    sentences = {
        part: {one.text.partition(".")[0] for one in examples} for part, examples in parts_of("babi", data_seed).items()
    }
    assert all(not one & other for one, other in itertools.combinations(sentences.values(), 2))
    placed = set.union(*map(units, parts_of("babi", data_seed).values()))
    assert len(placed & {"qa1-train-7", "qa1-train-8"}) == 1


@pytest.mark.parametrize("data_seed", range(4))
def test_a_question_of_val_or_test_is_not_asked_word_for_word_in_train(write_babi, data_seed):
    """Every story opens alike, and goes on by itself."""
    opened = [[["Mary slept.", "Who slept? \tMary\t1", *story(at)] for at in range(low, low + 12)] for low in (0, 100)]
    write_babi(*opened)
    parts = parts_of("babi", data_seed)
    assert not texts(parts["train"]) & (texts(parts["val"]) | texts(parts["test"]))
    assert units(parts["train"])
    assert "Mary slept. Who slept?" in texts(parts["val"])


@pytest.fixture
def few_questions(write_babi, monkeypatch):
    """Archives of as many stories as a small evaluation has questions, and some to train on."""
    monkeypatch.setattr(text, "EVALUATION", 5)
    write_babi()


def test_of_each_story_the_first_question_alone_is_asked_behind_the_sentences_before_it(few_questions):
    parts = parts_of("babi", questions="first")
    assert {part: len(examples) for part, examples in parts.items()} == {"train": 7, "val": 5, "test": 5}
    for examples in parts.values():
        assert len(units(examples)) == len(examples)
        assert all(one.text.count(". ") == 1 for one in examples)  # one sentence, then its question
    assert units(parts["train"]) | units(parts["val"]) == {f"qa1-train-{at}" for at in range(1, 13)}


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_story_that_is_evaluated_by_all_of_its_questions_is_so_by_its_first(few_questions, part):
    every, first = (text.examples("babi", part, 0, questions=questions) for questions in ("all", "first"))
    assert units(every) <= units(first)
    assert texts(one for one in every if one.text.count(". ") == 1) <= texts(first)
    assert text.examples("babi", part, 0) == every


def test_too_few_stories_for_a_question_each_are_refused_with_the_way_out(write_babi):
    write_babi()
    with pytest.raises(
        DataError, match=r'^qa1: test needs 20 questions on other stories, .* 12; set questions = "all"$'
    ):
        text.examples("babi", "train", 0, questions="first")


def test_too_few_stories_are_refused_with_the_numbers(write_babi):
    write_babi(train=[story(at % 2) for at in range(12)])
    with pytest.raises(DataError, match=r"qa1: val needs 20 questions on other stories, but there are 10"):
        text.examples("babi", "train", 0)


def test_tasks_are_told_apart(write_babi):
    write_babi(**{"en/qa7_some-name_train.txt": numbered(story(at) for at in range(50, 62)).encode()})
    assert not texts(text.examples("babi", "train", 0, task=7)) & texts(text.examples("babi", "train", 0, task=8))
    assert units(text.examples("babi", "test", 0, task=20)) <= {f"qa20-test-{at}" for at in range(1, 13)}


def test_other_folders_of_the_archive_are_not_read(write_babi):
    write_babi()
    digest = text.verify("babi")
    write_babi(**{"en-10k/qa1_some-name_train.txt": b"other", "LICENSE.txt": b"terms", "en/._qa1_x_train.txt": b"x"})
    assert text.verify("babi") == digest


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda content: None, r"en/qa3_\*_test.txt must be in it"),
        (
            lambda content: content[content.index(b"\n1 ") + 1 :],
            r"stories and questions: \(12, 60\), but got \(11, 55\)",
        ),
        (lambda content: content[: content.rindex(b"9 ")], r"\(12, 60\), but got \(12, 59\)"),
        (lambda content: content.replace(b"\n3 ", b"\n4 ", 1), "line 3 must count a sentence, or a question"),
        (lambda content: content[2:], "line 1 must count"),
        (lambda content: content.replace(b"\t", b"\t\t", 1), "line 2 must count"),
        (lambda content: b"1 \xff\n", "codec can't decode"),
    ],
    ids=["missing", "a story less", "a question less", "wrong number", "no number", "no answer", "no text"],
)
def test_a_file_with_other_content_is_refused_in_one_line(write_babi, spoil, rule):
    whole = numbered(story(at) for at in range(100, 112)).encode()
    write_babi(**{"en/qa3_some-name_test.txt": spoil(whole)})
    refused("babi", rule)


def test_the_published_numbers_of_stories_are_required(write_babi, monkeypatch):
    write_babi()
    monkeypatch.setattr(text_archives, "FACTS", text_archives.Facts())
    refused("babi", r"qa1_.*: \(200, 1000\), but got \(12, 60\)")


# Pairs: XSum


def pair(at, words=10):
    return {"document": f"Event {at} was\nof {'note ' * (words - 7)}", "summary": f"It was {at}.", "id": at}


def write_pairs(given, pairs):
    (given / "xsum.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs), "utf-8")


def test_a_document_is_one_line(small):
    write_pairs(small, [pair(at) for at in range(42)])
    (example,) = [one for part in parts_of("xsum").values() for one in part if one.unit == "7"]
    assert example == Example("7", "Event 7 was of note note note", "It was 7.")


@pytest.mark.parametrize("data_seed", range(3))
def test_pairs_are_divided(small, data_seed):
    write_pairs(small, [pair(at) for at in range(50)])
    parts = parts_of("xsum", data_seed)
    assert {part: len(parts[part]) for part in parts} == {"train": 10, "val": 20, "test": 20}
    assert set.union(*map(units, parts.values())) == {str(at) for at in range(50)}


def test_pairs_of_fewer_words_than_the_bound_are_taken(small):
    pairs = [pair(at, 9 + at % 3) for at in range(75)]
    assert [len(f"{row['document']} {row['summary']}".split()) for row in pairs[:3]] == [9, 10, 11]
    write_pairs(small, pairs)
    parts = parts_of("xsum", max_words=11)
    assert set.union(*map(units, parts.values())) == {str(at) for at in range(75) if at % 3 < 2}
    with pytest.raises(
        DataError, match=r"of 75 pairs those with fewer than 10 words must .* but are 25; raise max_words"
    ):
        text.examples("xsum", "train", 0, max_words=10)


def test_350_words_are_the_bound_unless_told(small):
    write_pairs(small, [pair(at, 349 + at % 2) for at in range(100)])
    assert text.examples("xsum", "train", 0) == text.examples("xsum", "train", 0, max_words=350)
    assert len(text.examples("xsum", "train", 0)) == 50 - 2 * SMALL


def test_a_pair_without_words_or_with_an_earlier_document_or_summary_is_left_out(small):
    spare = [
        {"document": " \n", "summary": "Nothing.", "id": 100},
        {"document": "Something.", "summary": "-", "id": 101},
        pair(3) | {"summary": "Another.", "id": 102},
        pair(200) | {"summary": "it was 4", "id": 103},
    ]
    write_pairs(small, [*(pair(at) for at in range(45)), *spare])
    assert set.union(*map(units, parts_of("xsum").values())) == {str(at) for at in range(45)}


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ('{"id": 1', "line 43 must be a JSON object"),
        ('["id", 1]', "line 43 must be a JSON object"),
        (
            '{"id": 99, "document": "One."}',
            "line 43: summary must stand in each row as a text or a number, but got no such",
        ),
        ('{"id": 99, "document": null, "summary": "1"}', "line 43: document must stand in .*, but got None"),
        ('{"id": 5, "document": "One.", "summary": "1"}', "as many different ids as pairs: 43, but got 42"),
    ],
    ids=["no JSON", "no object", "no summary", "no document", "an id twice"],
)
def test_a_spoilt_pair_is_refused_in_one_line(small, line, rule):
    write_pairs(small, [pair(at) for at in range(42)])
    with (small / "xsum.jsonl").open("a") as file:
        file.write(line + "\n")
    refused("xsum", rule)


def test_an_empty_file_of_pairs_is_told_to_be_empty(small):
    write_pairs(small, [])
    refused("xsum", "expected pairs of a document and its summary, got an empty file")


def test_a_file_with_too_few_pairs_of_any_length_is_not_told_to_take_longer_ones(small):
    write_pairs(small, [pair(at) for at in range(30)])
    with pytest.raises(DataError, match=r"of 30 pairs .* but are 30; use a larger archive$"):
        text.examples("xsum", "train", 0)


def test_other_pairs_are_packed_anew(small):
    write_pairs(small, [pair(at) for at in range(50)])
    digest, examples = text.digest("xsum"), text.examples("xsum", "val", 0)
    write_pairs(small, [pair(at) for at in range(1, 51)])
    assert text.digest("xsum") != digest
    assert text.examples("xsum", "val", 0) != examples


def write_parquet(given, pairs):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(pairs), given / "xsum.parquet")


def test_the_same_pairs_in_parquet_are_the_same_data(small):
    pairs = [pair(at) for at in range(50)]
    write_pairs(small, pairs)
    digest = text.digest("xsum")
    (small / "xsum.jsonl").unlink()
    write_parquet(small, [row | {"id": str(row["id"])} for row in pairs])
    assert text.digest("xsum") == digest


def test_a_file_that_is_no_parquet_is_refused_in_one_line(small):
    (small / "xsum.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"xsum\.parquet: .*rooms") as caught:
        text.pack("xsum")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [write_pairs, write_parquet])
def test_more_pairs_than_the_bound_are_refused(small, write, monkeypatch):
    archive = archives.ARCHIVES["xsum.jsonl"]
    monkeypatch.setitem(archives.ARCHIVES, "xsum.jsonl", replace(archive, max_bytes=1000))
    write(small, [pair(at) for at in range(50)])
    with pytest.raises(DataError, match="1000 bytes"):
        text.pack("xsum")


# Reviews: Amazon


def review(at, stars, review_text=None):
    return {"reviewText": review_text or f"Review {at} of a  banjo", "overall": float(stars), "asin": "B0"}


@pytest.fixture
def write_reviews(small, monkeypatch):
    def write(rows, stars=None):
        counts = Counter(int(row["overall"]) for row in rows)
        monkeypatch.setattr(
            text_archives, "FACTS", text_archives.Facts(stars=stars or tuple(counts[at] for at in range(1, 6)))
        )
        with gzip.open(small / text_archives.FILES["amazon"], "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    return write


def reviews(each=10):
    return [review(at, 1 + at % 5) for at in range(5 * each)]


@pytest.mark.parametrize("data_seed", range(3))
def test_val_and_test_have_as_many_reviews_of_each_class(write_reviews, data_seed):
    write_reviews([*reviews(), *(review(at, 5) for at in range(50, 80))])
    parts = parts_of("amazon", data_seed)
    for part in ("val", "test"):
        assert Counter(one.answer for one in parts[part]) == dict.fromkeys("12345", SMALL // 5)
        for at in range(0, SMALL, 5):
            assert {one.answer for one in parts[part][at : at + 5]} == set("12345")
    assert Counter(one.answer for one in parts["train"]) == {**dict.fromkeys("1234", 2), "5": 32}
    assert set.union(*map(units, parts.values())) == {str(at) for at in range(1, 81)}


def test_a_review_is_told_by_its_number_and_stands_in_one_line(write_reviews):
    write_reviews([*reviews(), review(0, 4, "Good \n\tbanjo, &#34;really&#34;")])
    (example,) = [one for part in parts_of("amazon").values() for one in part if one.unit == "51"]
    assert example == Example("51", "Good banjo, &#34;really&#34;", "4")


def test_an_empty_review_and_one_that_was_posted_twice_are_left_out(write_reviews):
    long = "These are the only strings that I have used since I was a boy of ten, and I never heard any like these"
    assert len(long.split()) < 25 < len(f"{long} when I play them".split())
    spare = ["", " \n", "...", "Review 3, of a BANJO!", f"{long} when I play them at home."]
    write_reviews(
        [*reviews(), review(0, 2, f"{long}, when I play them in public."), *(review(0, 5, one) for one in spare)]
    )
    assert set.union(*map(units, parts_of("amazon").values())) == {str(at) for at in range(1, 52)}


def test_too_few_reviews_of_a_class_are_refused_with_the_numbers(write_reviews):
    write_reviews([row for at, row in enumerate(reviews()) if at not in (1, 6)])  # two of the ten with 2 stars
    with pytest.raises(DataError, match=r"with 2 of 5 stars must be more than 4 for val and 4 for test, but are 8"):
        text.examples("amazon", "val", 0)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda rows: rows[1:], "as many reviews by their stars"),
        (lambda rows: [review(0, 2), *rows[1:]], "as many reviews by their stars"),
        (lambda rows: [*rows[:-1], review(0, 4.5)], "as many reviews by their stars"),
        (lambda rows: [{"reviewText": "x"}, *rows[1:]], "line 1: overall must stand in each row"),
        (lambda rows: [*rows[:-1], ["x"]], "line 50 must be a JSON object"),
    ],
    ids=["a review less", "other stars", "half a star", "no stars", "no object"],
)
def test_reviews_with_other_content_are_refused_in_one_line(write_reviews, small, monkeypatch, change, rule):
    write_reviews(reviews())
    with gzip.open(small / text_archives.FILES["amazon"], "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in change(reviews()))
    refused("amazon", rule)


# All archives


@pytest.mark.parametrize(
    ("dataset", "file"),
    [
        ("babi", "babi_tasks_1-20_v1-2.tar.gz"),
        ("xsum", "0000.parquet and put it into one of them as xsum.parquet"),
        ("amazon", "reviews_Musical_Instruments_5.json.gz"),
    ],
)
def test_a_missing_archive_says_what_to_fetch_and_that_rooms_needs_none(given, dataset, file):
    refused(dataset, rf"{dataset} needs it.*https://.*{file}")


def test_what_is_packed_needs_the_archives_no_longer(write_babi, write_reviews, small):
    write_babi()
    before = text.digest("babi")
    shutil.rmtree(small)
    assert text.digest("babi") == before
    assert len(text.examples("babi", "val", 0)) == SMALL


def test_a_list_of_examples_is_the_caller_s_own(warm_cache):
    examples = text.examples("rooms", "val", 0)
    whole = examples.copy()
    examples.clear()
    assert text.examples("rooms", "val", 0) == whole


def test_a_part_is_made_once_a_process(warm_cache, monkeypatch):
    examples = text.examples("rooms", "train", 5)
    monkeypatch.setattr(text, "_split_stories", None)
    assert text.examples("rooms", "train", 5) == examples


@pytest.mark.parametrize(
    ("arguments", "choices", "rule"),
    [
        (("bible", "train", 0), {}, "dataset: must be one of babi, xsum, amazon, rooms, but got 'bible'"),
        (("rooms", "all", 0), {}, "part: must be one of train, val, test, but got 'all'"),
        (("rooms", "train", -1), {}, "`0 <= data_seed <= 4294967295` must hold, but got -1"),
        (("babi", "train", 0), {"task": 21}, "`1 <= task <= 20` must hold, but got 21"),
        (("xsum", "train", 0), {"max_words": 0}, "`1 <= max_words <= .*` must hold, but got 0"),
    ],
)
def test_a_name_or_number_that_cannot_be_is_refused_with_its_value(arguments, choices, rule):
    with pytest.raises(SpecError, match=rule):
        text.examples(*arguments, **choices)


# Drawing


def pool(stories=10, questions=5):
    """Questions on stories; the answer to each tells its number within the story."""
    return [Example(f"{s}", f"Story {s}, question {q}?", str(q)) for s in range(stories) for q in range(questions)]


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("draw_seed", [0, 1, 2**40])
def test_draws_of_one_seed_are_nested(classes, draw_seed):
    draws = [text.draw(pool(), shots, draw_seed, classes=classes) for shots in range(11)]
    assert [len(draw) for draw in draws] == [shots * (5 if classes else 1) for shots in range(11)]
    for smaller, larger in itertools.pairwise(draws):
        assert larger[: len(smaller)] == smaller


@pytest.mark.parametrize("classes", [False, True])
def test_a_draw_hangs_on_its_seed_alone(classes):
    first, again, other = (text.draw(pool(), 8, seed, classes=classes) for seed in (3, 3, 4))
    assert first == again != other


def test_no_example_is_drawn_twice():
    assert len(set(text.draw(pool(), 50, 0, classes=False))) == 50


@pytest.mark.parametrize(("shots", "stories"), [(1, 1), (8, 8), (10, 10), (16, 10), (50, 10)])
def test_a_draw_is_of_as_many_stories_as_there_are(shots, stories):
    drawn = Counter(one.unit for one in text.draw(pool(), shots, 0, classes=False))
    assert len(drawn) == stories
    assert max(drawn.values()) - min(drawn.values()) <= 1


def test_a_draw_is_not_of_the_first_questions_alone():
    assert len({one.answer for one in text.draw(pool(), 10, 0, classes=False)}) > 1


def test_a_draw_by_class_is_balanced():
    drawn = text.draw(pool(), 7, 0, classes=True)
    assert Counter(one.answer for one in drawn) == dict.fromkeys("01234", 7)
    assert all({one.answer for one in drawn[at : at + 5]} == set("01234") for at in range(0, 35, 5))


def test_every_example_is_drawn_as_often_as_another():
    """The share of draws that hold an example is 10 in 50; 400 draws are off by .02 (one standard deviation)."""
    drawn = Counter(one for seed in range(400) for one in text.draw(pool(), 10, seed, classes=False))
    assert len(drawn) == 50
    assert all(abs(count / 400 - 0.2) < 0.09 for count in drawn.values())


@pytest.mark.parametrize(
    ("classes", "shots", "rule"),
    [
        (False, 51, r"`shots <= 50`, the training examples, must hold, but got 51"),
        (True, 11, r"`shots <= 10`, the training examples of the answer '0', must hold, but got 11"),
    ],
)
def test_too_few_examples_for_a_draw_are_refused_with_the_numbers(classes, shots, rule):
    with pytest.raises(DataError, match=rule):
        text.draw(pool(), shots, 0, classes=classes)


# Rooms


def last_place(question):
    """The answer to "where is X?", read off the text by its last sentence on X."""
    asked = re.fullmatch(r".* Where is (\w+)\?", question)[1]
    return re.findall(rf"{asked} \w+ to the (\w+)\.", question)[-1]


def test_rooms_need_no_archive_and_no_network(cold_cache):
    parts = parts_of("rooms")
    assert [len(texts(part)) for part in parts.values()] == [1375, 125, 125]


def test_the_answers_in_rooms_are_where_people_went_last(warm_cache):
    for one in itertools.chain(*parts_of("rooms").values()):
        assert one.answer == last_place(one.text)


def test_stories_of_rooms_are_divided_and_none_is_told_twice(warm_cache):
    parts = parts_of("rooms")
    assert {part: len(units(parts[part])) for part in parts} == {"train": 275, "val": 25, "test": 25}
    longest = {one.unit: one.text.rpartition(".")[0] for one in sorted(itertools.chain(*parts.values()), key=by_length)}
    assert len(set(longest.values())) == len(longest) == 325
    assert {story.count(".") for story in longest.values()} == {9}  # ten sentences, the last without its period


def by_length(example):
    return len(example.text)


def test_nobody_in_rooms_goes_where_they_are(warm_cache):
    for one in text.examples("rooms", "val", 0):
        where = {}
        for person, place in re.findall(r"(\w+) \w+ to the (\w+)\.", one.text):
            assert where.get(person) != place
            where[person] = place


def test_no_room_is_the_answer_much_more_often_than_another(warm_cache):
    """A sixth of 1,375 questions is 229, and one standard deviation 14."""
    counts = Counter(one.answer for one in text.examples("rooms", "train", 0))
    assert set(counts) == set(rooms.ROOMS.places)
    assert all(abs(count - 229) < 4 * 14 for count in counts.values())


def test_rooms_of_one_version_are_the_same_everywhere(tmp_path, monkeypatch):
    digests = set()
    for home in ("one", "other"):
        monkeypatch.setenv("CS330RAY_CACHE", str(tmp_path / home))
        digests.add(text.verify("rooms"))
    assert len(digests) == 1


def test_rooms_of_another_version_are_packed_anew(warm_cache, monkeypatch):
    path = text.pack("rooms").path
    monkeypatch.setattr(rooms, "ROOMS", replace(rooms.ROOMS, version=2))
    assert text.pack("rooms").path != path


# The published archives


@real("babi")
@pytest.mark.parametrize("task", range(1, 21))
def test_no_story_and_no_training_question_of_babi_is_in_two_parts(published, task):
    parts = parts_of("babi", task=task)
    assert (len(parts["val"]), len(parts["test"])) == (125, 125)
    assert all(not units(one) & units(other) for one, other in itertools.combinations(parts.values(), 2))
    assert not texts(parts["train"]) & (texts(parts["val"]) | texts(parts["test"]))
    content = json.loads(text.pack("babi").arrays[f"qa{task}"].tobytes())
    told = {f"qa{task}-{file}-{at}": sentences(story) for file in content for at, story in enumerate(content[file], 1)}
    stories = [{told[unit] for unit in units(part)} for part in parts.values()]
    assert all(not one & other for one, other in itertools.combinations(stories, 2))


def sentences(story):
    return tuple(line[0] for line in story if len(line) == 1)


@real("babi")
def test_the_first_task_of_babi_asks_where_people_went_last(published):
    parts = parts_of("babi")
    assert {part: len(units(parts[part])) for part in parts} == {"train": 175, "val": 25, "test": 25}
    for one in itertools.chain(*parts.values()):
        asked = re.fullmatch(r".* Where is (\w+)\?", one.text)[1]
        assert one.answer == re.findall(rf"{asked} [a-z ]+ to the (\w+)\.", one.text)[-1]


@real("babi")
def test_the_first_question_of_each_story_of_babi_stands_behind_two_sentences_as_in_the_course(published):
    parts = parts_of("babi", questions="first")
    assert {part: len(units(parts[part])) for part in parts} == {"train": 72, "val": 125, "test": 125}
    for one in itertools.chain(*parts.values()):
        assert re.fullmatch(r"[A-Z][a-z ]+\. [A-Z][a-z ]+\. Where is \w+\?", one.text)


@real("xsum")
def test_the_published_pairs_divide_as_agreed(published):
    assert [len(part) for part in parts_of("xsum").values()] == [394 - 250, 125, 125]
    with pytest.raises(DataError, match=r"of 700 pairs those with fewer than 100 words must be .* but are 65"):
        text.examples("xsum", "train", 0, max_words=100)


@real("amazon")
def test_the_published_reviews_divide_as_agreed(published):
    parts = parts_of("amazon")
    assert Counter(one.answer for one in parts["val"]) == dict.fromkeys("12345", 25)
    assert Counter(one.answer for one in parts["test"]) == dict.fromkeys("12345", 25)
    assert len(text.draw(parts["train"], 128, 0, classes=True)) == 640
    shown = [[re.sub(r"\W+", "", one.text.lower()) for one in part] for part in parts.values()]
    assert all(not set(one) & set(other) for one, other in itertools.combinations(shown, 2))


@real("amazon")
def test_a_review_less_among_the_published_is_found(given):
    rows = gzip.decompress((Path(REAL) / text_archives.FILES["amazon"]).read_bytes()).splitlines(keepends=True)
    (given / text_archives.FILES["amazon"]).write_bytes(gzip.compress(b"".join(rows[:-1]), 1))
    refused("amazon", r"'4': 2084, '5': 6938\}, but got .*'4': 2083, '5': 6938\}")
