"""From what a user types to class indices, and which classes are shown."""

import pytest
import torch

from models import sample
from models.checkerboard.model import Checkerboard
from models.class_names import class_names
from runtime.errors import UserError
from sampling.labels import SHOWN_IMAGENET_CLASSES, labels_text, parse_labels, shown_labels
from tests.factory import tiny_model

pytestmark = pytest.mark.quick
NAMES = ["tench, Tinca tinca", "tabby cat", "volcano", "crane", "Crane", "chair, crane", "fox", "lamp", "car", "bus"]


@pytest.fixture(scope="module")
def named() -> Checkerboard:
    """A model of ten classes with names; three are cranes."""
    model = tiny_model()
    model.class_names = NAMES
    return model


@pytest.fixture(scope="module")
def imagenet() -> Checkerboard:
    return tiny_model(num_classes=1000)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("3", [3]),
        ("0,9,0", [0, 9, 0]),
        (' 3 , "tabby cat" ,volcano', [3, 1, 2]),
        ("TABBY cat", [1]),
        ("tench", [0]),
        ("Tinca tinca", [0]),
        ('"tench, Tinca tinca"', [0]),
        ("crane", [3]),
        ("Crane", [4]),
        ("chair", [5]),
    ],
)
def test_indices_and_names(text: str, labels: list[int], named: Checkerboard) -> None:
    assert parse_labels(text, named) == labels


def test_imagenet_names_come_with_1000_classes(imagenet: Checkerboard) -> None:
    assert parse_labels('207,"tabby cat",volcano,golden retriever', imagenet) == [207, 281, 980, 207]
    assert len(class_names(imagenet)) == 1000
    assert class_names(imagenet)[0].startswith("tench")
    assert class_names(tiny_model(num_classes=1000, class_cond=False)) is None
    assert class_names(tiny_model()) is None


def test_of_many_classes_a_message_names_none(imagenet: Checkerboard) -> None:
    with pytest.raises(UserError, match="no class is called qqqqq; --list_classes names all"):
        parse_labels("qqqqq", imagenet)


def test_names_of_its_own_win(imagenet: Checkerboard, named: Checkerboard) -> None:
    assert class_names(named) == NAMES
    with pytest.raises(UserError):
        parse_labels("lamp", imagenet)
    assert parse_labels("lamp", named) == [7]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("10", "label 10 is out of range; this model has classes 0 to 9"),
        ("-1", "label -1 is out of range"),
        ("vulcano", "no class is called vulcano; did you mean volcano"),
        ("qqqqq", "no class is called qqqqq; known are "),
        ("", "labels is empty"),
        ("  ", "labels is empty"),
        (" , ", "labels is empty"),
    ],
)
def test_what_is_no_class_is_refused(text: str, answer: str, named: Checkerboard) -> None:
    with pytest.raises(UserError, match=answer):
        parse_labels(text, named)


def test_a_name_without_names_is_refused() -> None:
    with pytest.raises(UserError, match="this model has no class names"):
        parse_labels("fox", tiny_model())


def test_shown_classes(named: Checkerboard, imagenet: Checkerboard) -> None:
    assert shown_labels(named, 16) == list(range(10))
    assert shown_labels(named, 4) == [0, 2, 5, 7]
    assert shown_labels(imagenet, 16) == list(SHOWN_IMAGENET_CLASSES)
    assert shown_labels(tiny_model(num_classes=100), 16) == [i * 100 // 16 for i in range(16)]
    assert shown_labels(tiny_model(class_cond=False), 3) == [10, 10, 10]
    for model, count in ((named, 16), (imagenet, 16), (tiny_model(num_classes=33), 16)):
        labels = shown_labels(model, count)
        assert len(labels) == len(set(labels)) == min(count, model.config.num_classes)
        assert all(0 <= label < model.config.num_classes for label in labels)


def test_capitals_decide_only_where_they_are_typed_right(named: Checkerboard) -> None:
    with pytest.raises(UserError, match="several classes are called CRANE"):
        parse_labels("CRANE", named)


def test_an_exact_first_name_comes_before_another_classs_other_name(imagenet: Checkerboard) -> None:
    assert parse_labels("harp,Harp", imagenet) == [594, 594]  # 593 is "harmonica, mouth organ, harp, mouth harp"
    assert parse_labels("maillot", imagenet) == [638]  # 639 is "maillot, tank suit"


@pytest.mark.parametrize(("name", "indices"), [("crane", ("134", "517")), ("panda", ("387", "388"))])
def test_a_name_of_several_classes_is_refused_with_their_indices(
    name: str, indices: tuple[str, ...], imagenet: Checkerboard
) -> None:
    with pytest.raises(UserError, match="several classes are called") as caught:
        parse_labels(name, imagenet)
    assert all(index in str(caught.value) for index in indices)


def test_classes_called_by_numbers() -> None:
    model = tiny_model()
    model.class_names = ["1", "10", "2", "3", "4", "5", "6", "7", "8", "9"]
    with pytest.warns(UserWarning, match="10 is the class called so, which has index 1"):
        assert parse_labels("2,10,1", model) == [2, 1, 0]
    with pytest.raises(UserError, match="no class is called 0, and index 0 is the class called 1"):
        parse_labels("0", model)


def test_classes_called_by_numbers_of_another_spelling() -> None:
    model = tiny_model()
    model.class_names = [f"{number}.0" for number in range(1, 11)]
    with pytest.raises(UserError, match=r"no class is called 1, and index 1 is the class called 2\.0"):
        parse_labels("1", model)


def test_a_class_called_infinity_is_no_number() -> None:
    model = tiny_model()
    model.class_names = ["apple", "infinity", "nan", *"defghij"]
    assert parse_labels("2,infinity,3", model) == [2, 1, 3]


def test_a_name_with_commas_that_is_a_list_too_stands_in_quotes() -> None:
    model = tiny_model()
    model.class_names = ["a", "b", "a,b", *"cdefghi"]
    assert parse_labels("a,b", model) == [0, 1]
    assert parse_labels('"a,b"', model) == [2]


def test_numbers_that_are_their_own_indices_need_no_word(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    model.class_names = [str(i) for i in range(10)]
    assert parse_labels("3,9", model) == [3, 9]
    assert capsys.readouterr().out == ""


def test_accents_may_be_composed_or_not() -> None:
    model = tiny_model()
    model.class_names = ["cafe\u0301", *"bcdefghij"]
    assert parse_labels("caf\xe9,CAFE\u0301", model) == [0, 0]


def test_names_serve_as_labels_in_python() -> None:
    model = tiny_model(num_classes=3)
    model.class_names = ["otter", "tabby, tabby cat", "volcano"]
    drawn = sample(model, ["tabby cat", 0, "Volcano"], seeds=[5, 6, 7])
    assert torch.equal(drawn.images, sample(model, [1, 0, 2], seeds=[5, 6, 7]).images)
    assert torch.equal(sample(model, "otter", seeds=[6]).images, sample(model, [0], seeds=[6]).images)
    with pytest.raises(UserError, match="no class is called vulcano; did you mean volcano"):
        sample(model, ["vulcano"])


ODD_NAMES = ['say "a"', "a, b", "a", "b", "[c]", "c", "2", "-d", "e, a", "e"]


def test_the_text_of_labels_is_read_back_as_these(named: Checkerboard, imagenet: Checkerboard) -> None:
    odd, nameless = tiny_model(), tiny_model()
    odd.class_names = ODD_NAMES
    for model in (named, imagenet, odd, nameless):
        every = list(range(model.config.num_classes))
        assert parse_labels(labels_text(every, model), model) == every
    for model in (named, odd, nameless):
        for label in range(10):
            assert parse_labels(labels_text([label], model), model) == [label]
    assert labels_text([0, 1, 4, 5, 3], named) == "tench,tabby cat,Crane,chair,crane"
    assert labels_text([3, 1], nameless) == "3,1"
