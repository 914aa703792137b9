import datetime as dt
from xml.etree import ElementTree

import pytest

from alloop.errors import ConfigError, LabelingError
from alloop.labeling.label_config import (
    check_config,
    check_names,
    extended_config,
    find_controls,
    is_generated,
    prediction,
    read_annotation,
)
from alloop.labeling.single_choice import SingleChoice
from alloop.records import ImageRef, Outcome, OutgoingTask

WORDING = SingleChoice()

ODD = ("cat", 'say "meow"', "<b>&amp;</b>", "it's", "chat été 猫", "6", "7", "8", "9", "10")


def control(xml: str, classes=("cat", "dog")):
    return check_config(xml, None, classes, "project 7", WORDING)


def config(choices: str, attributes: str = 'name="label" toName="image"', image: str = "$image") -> str:
    return f'<View><Image name="image" value="{image}"/><Choices {attributes}>{choices}</Choices></View>'


CAT_DOG = '<Choice value="cat"/><Choice value="dog"/>'


def test_class_names_survive_xml_whatever_signs_they_hold():
    nodes = list(ElementTree.fromstring(WORDING.build(ODD)).iter("Choice"))

    assert [node.get("value") for node in nodes] == list(ODD)
    assert [node.get("hotkey") for node in nodes] == [*"123456789", None]


@pytest.mark.parametrize("name", ["$5", "US$5", "$image", "from $10 up", "${x}", "$[0]", "$.", "$_"])
def test_a_class_that_the_server_would_read_as_a_field_of_the_task_is_refused(name: str):
    with pytest.raises(ConfigError, match=r"Label Studio cannot show the class ") as caught:
        check_names(("cat", name))

    assert repr(name) in caught.value.message


@pytest.mark.parametrize("name", ["5$", "$", "$ 5", "a$-b", "$é", "cheap {{x}}", "@x", "Cat", "a, b", "x" * 300])
def test_a_class_with_another_odd_sign_is_taken(name: str):
    check_names(("cat", name))

    assert check_config(WORDING.build(("cat", name)), None, ("cat", name), "project 7", WORDING).choices == (
        "cat",
        name,
    )


def test_a_hand_written_choice_that_is_read_as_a_field_is_no_answer_unless_it_has_an_alias():
    parsed = {"label": {"labels": ["cat", "$5"]}}
    with pytest.raises(LabelingError, match=r"cannot take the class '\$5'") as caught:
        check_config(config('<Choice value="cat"/><Choice value="$5"/>'), parsed, ("cat", "$5"), "project 7", WORDING)

    assert '<Choice value="..." alias="$5"/>' in caught.value.hint
    aliased = config('<Choice value="cat"/><Choice value="five dollars" alias="$5"/>')
    assert control(aliased, ("cat", "$5")).choices == ("cat", "$5")
    assert check_config(aliased, parsed, ("cat", "$5"), "project 7", WORDING).choices == ("cat", "$5")


def test_what_alloop_writes_it_recognises_and_accepts():
    xml = WORDING.build(ODD)

    assert is_generated(xml, WORDING)
    assert is_generated("\n  " + xml.replace("\n", "\r\n") + "\n", WORDING)
    assert check_config(xml, None, ODD, "project 7", WORDING).choices == ODD


@pytest.mark.parametrize("edit", [("<View>", "<View><Header value='x'/>"), ('hotkey="1"', 'hotkey="c"'), ("cat", '"')])
def test_an_interface_touched_by_hand_is_not_taken_for_ours(edit: tuple[str, str]):
    assert not is_generated(WORDING.build(("cat", "dog")).replace(*edit), WORDING)


def test_adding_a_class_keeps_what_the_server_has_beyond_ours():
    xml = WORDING.build(("cat", "old"))

    assert extended_config(xml, ("cat", "dog"), WORDING) == WORDING.build(("cat", "dog", "old"))


def test_an_alias_is_what_annotations_will_say():
    xml = config('<Choice value="Katze" alias="cat"/><Choice value="dog"/><Choice value="other"/>')

    found = control(xml)

    assert found.choices == ("cat", "dog", "other")


def test_the_servers_own_reading_of_the_labels_counts():
    parsed = {"label": {"type": "Choices", "labels": ["cat", "dog"]}}

    assert check_config(config('<Choice value="?"/>'), parsed, ("cat", "dog"), "p", WORDING).choices == ("cat", "dog")


def test_names_and_data_key_are_taken_from_the_interface():
    xml = (
        '<View><Image name="pic" value="$url"/><Choices name="kind" toName="pic" choice="single-radio">'
        f"{CAT_DOG}</Choices></View>"
    )

    found = control(xml)

    assert (found.name, found.to_name, found.data_key) == ("kind", "pic", "url")


@pytest.mark.parametrize(
    "xml",
    [
        "<View></View>",
        config(CAT_DOG, 'name="label" toName="image" choice="multiple"'),
        config(CAT_DOG, 'name="label" toName="image" perRegion="true"'),
        config(CAT_DOG, 'name="label" toName="text"'),
        config(CAT_DOG, image="http://fixed"),
        f'<View><Text name="image" value="$image"/><Choices name="label" toName="image">{CAT_DOG}</Choices></View>',
    ],
    ids=["empty", "multiple", "per region", "other object", "no variable", "text"],
)
def test_an_interface_that_cannot_ask_for_one_class_of_an_image_is_refused(xml: str):
    with pytest.raises(LabelingError, match="project 7 has no <Choices"):
        control(xml)


def test_missing_and_extra_classes_are_both_named():
    with pytest.raises(LabelingError) as caught:
        check_config(
            config('<Choice value="Cat"/><Choice value="dog"/>'), None, ("cat", "dog", "cow"), "project 7", WORDING
        )

    assert "cannot take the classes 'cat', 'cow'" in caught.value.message
    assert "'Cat'" in caught.value.message
    assert '<Choice value="cat"/>' in caught.value.hint


def test_the_control_that_fits_is_found_among_several():
    other = '<Choices name="mood" toName="image"><Choice value="happy"/></Choices>'
    xml = config(CAT_DOG).replace("</View>", other + "</View>")

    assert [found.name for found in find_controls(xml, None, WORDING)] == ["label", "mood"]
    assert control(xml).name == "label"


BOMB = '<!DOCTYPE lolz [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><View>&b;</View>'
OUTSIDE = '<!DOCTYPE v [<!ENTITY x SYSTEM "file:///etc/hostname">]><View>&x;</View>'


@pytest.mark.parametrize("xml", [BOMB, OUTSIDE])
def test_entities_are_never_expanded(xml: str):
    with pytest.raises(LabelingError, match="declares a document type or entities"):
        find_controls(xml, None, WORDING)


def test_comments_are_allowed_and_broken_xml_is_said_to_be():
    assert find_controls(f"<!-- ours -->{config(CAT_DOG)}", None, WORDING)
    with pytest.raises(LabelingError, match="not well-formed"):
        find_controls("<View>", None, WORDING)


def task(confidence: float | None, predicted: str | None = "dog", version: str | None = "m3") -> OutgoingTask:
    return OutgoingTask("k", ImageRef(1, "0" * 64, "a.png"), predicted, confidence, version)


def test_a_shown_guess_names_the_class_and_a_hidden_one_does_not():
    ours = control(config(CAT_DOG))

    shown, hidden = prediction(task(0.25), ours, True, WORDING), prediction(task(0.25), ours, False, WORDING)

    assert shown == {
        "model_version": "m3",
        "score": 0.25,
        "result": [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["dog"]}}],
    }
    assert hidden == {"model_version": "m3", "score": 0.25, "result": []}


@pytest.mark.parametrize(("confidence", "score"), [(-1e-9, 0.0), (0.0, 0.0), (1.0, 1.0), (1.0000001, 1.0)])
def test_scores_stay_where_the_server_keeps_them(confidence: float, score: float):
    assert prediction(task(confidence), control(config(CAT_DOG)), False, WORDING)["score"] == score


def test_without_a_model_there_is_no_prediction():
    assert prediction(task(None, None, None), control(config(CAT_DOG)), True, WORDING) is None


def annotation(*choices: list[str], **fields: object) -> dict[str, object]:
    items = [{"from_name": "label", "type": "choices", "value": {"choices": list(names)}} for names in choices]
    made = {"id": 5, "created_at": "2026-11-22T07:26:24.5Z", "updated_at": "2026-11-22T07:26:25.123456Z"}
    return {**made, "result": items, "was_cancelled": False, "lead_time": 2.5, **fields}


def test_an_annotation_is_read_with_id_person_time_and_lead_time():
    answer = read_annotation(annotation(["cat"]), "label", "ann", WORDING)

    assert (answer.external_id, answer.annotator, answer.lead_time) == ("5", "ann", 2.5)
    assert (answer.outcome, answer.value) == (Outcome.LABEL, "cat")
    assert answer.updated_at == dt.datetime(2026, 11, 22, 7, 26, 25, 123456, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("given", "outcome", "value"),
    [
        (annotation(), Outcome.EMPTY, None),
        (annotation(result=None), Outcome.EMPTY, None),
        (annotation([]), Outcome.EMPTY, None),
        (annotation(was_cancelled=True), Outcome.SKIP, None),
        (annotation(["cat"], was_cancelled=True), Outcome.SKIP, None),
        (annotation(["Zebra "]), Outcome.LABEL, "Zebra "),
        (annotation(["cat", "dog"]), Outcome.LABEL, "cat / dog"),
        (annotation(["cat"], ["dog"]), Outcome.LABEL, "cat / dog"),
        (annotation(["cat"], ["cat"]), Outcome.LABEL, "cat"),
        (annotation(result=[{"from_name": "mood", "value": {"choices": ["cat"]}}]), Outcome.EMPTY, None),
        (annotation(result=[{"from_name": "label", "value": {}}, "noise"]), Outcome.EMPTY, None),
    ],
)
def test_every_kind_of_submission_has_a_meaning(given: dict[str, object], outcome: Outcome, value: str | None):
    answer = read_annotation(given, "label", "ann", WORDING)

    assert (answer.outcome, answer.value) == (outcome, value)
