"""alloop.toml and the environment: what is refused, and whether a stranger could mend it from the message alone."""

import json
from pathlib import Path

import pytest
from factories import make_config

from alloop.config.load import freeze_config, load_config, parse_config, set_values, validate_config
from alloop.config.template import render_config
from alloop.errors import ConfigError

VALID = '[project]\nclasses = ["cat", "dog"]\n'


def refusal(text: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "alloop.toml", environ or {})
    assert caught.value.exit_code == 2
    assert caught.value.__cause__ is None or "pydantic" not in repr(caught.value.__cause__)
    return str(caught.value)


def test_what_is_not_said_has_a_default():
    config = parse_config(VALID, "alloop.toml", {})

    assert config == make_config()
    assert (config.loop.batch_size, config.acquisition.random_fraction, config.model.n_members) == (50, 0.1, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[loop]\nbacth_size = 5", "alloop.toml: [loop] has no setting 'bacth_size'; did you mean 'batch_size'?"),
        ("[lop]\nbatch_size = 5", "alloop.toml: has no setting 'lop'; did you mean 'loop'?"),
        (
            "[labeling.label_studio]\nurll = 'x'",
            "alloop.toml: [labeling.label_studio] has no setting 'urll'; did you mean 'url'?",
        ),
        (
            '[pool]\nimages = "photos"',
            "alloop.toml: [pool] images = 'photos' is refused: it is a list; write it in brackets.",
        ),
        (
            "[pool]\nxyz = 1",
            "alloop.toml: [pool] has no setting 'xyz'; there are: images, near_duplicate_distance, near_duplicates, "
            "max_pixels, truncated.",
        ),
        ("[loop]\nbatch_size = 'five'", "alloop.toml: [loop] batch_size = 'five' is refused: "),
        ("[loop]\nbatch_size = 5.0", "alloop.toml: [loop] batch_size = 5.0 is refused: "),
        ("[loop]\nbatch_size = true", "alloop.toml: [loop] batch_size = True is refused: "),
        ("[loop]\nbatch_size = 0", "alloop.toml: [loop] batch_size = 0 is refused: "),
        (
            "[acquisition]\nstrategy = 'entrpy'",
            "[acquisition] there is no strategy 'entrpy'; did you mean 'entropy'?",
        ),
        ("[acquisition]\nrandom_fraction = 1.5", "[acquisition] random_fraction = 1.5 is refused: "),
        ("[acquisition]\nbeta = inf", "[acquisition] beta = inf is refused: input should be a finite number."),
        ("[acquisition]\nmax_ram = inf", "[acquisition] max_ram = inf is refused: input should be a finite number."),
        ("[loop]\nmin_answered = nan", "[loop] min_answered = nan is refused: input should be a finite number."),
        (
            "[labeling]\npoll_seconds = inf",
            "[labeling] poll_seconds = inf is refused: input should be a finite number.",
        ),
        ("[train]\nloss_parameters = { epsilon = true }", "epsilon = True is refused: "),
        ("[loop]\nbatch_size = 9223372036854775808", "[loop] batch_size = 9223372036854775808 is refused: "),
        ("[labeling.images]\nvia = 'url'", '[labeling.images] via = "url" needs both url_prefix and root.'),
        (
            "[labeling.oracle]\ncolumns = ['ann', 'ann']",
            "alloop.toml: [labeling.oracle] column 'ann' is named twice.",
        ),
        ("[labeling.oracle]\ncolumns = ['']", "[labeling.oracle] columns must not be empty or padded"),
        (
            "[labeling.oracle]\ncolumns = ['ann']\nnoise = 0.1",
            "[labeling.oracle] columns hold what real people answered; noise is for simulated people only.",
        ),
        ("[labeling.oracle]\ncolumns = ['ann']\nannotators = 2", "; annotators is for simulated people only."),
        (
            "[labeling]\nbackend = 'oracle'\nannotations_per_image = 3\noracle = { columns = ['ann', 'bob'] }",
            "[labeling] annotations_per_image is 3, but [labeling.oracle] columns names 2 people.",
        ),
        (
            "[model]\nbackbone = ['pixels', 'pixels']",
            "alloop.toml: [model] backbone names 'pixels' twice, with the same",
        ),
        ("[model]\nbackbone = []", "[model] backbone = [] is refused: input should be a name, or a list of them."),
        ("[model]\nbackbone = ['pixels', 5]", "[model] backbone = ['pixels', 5] is refused: input should be a name"),
        (
            "[model]\nbackbone = ['a', 'b']\nweights = ['x', 'y', 'z']",
            "[model] weights has 3 values, but backbone names 2 trunks; give one value for all, or one for each.",
        ),
        (
            "[model]\nbackbone = 'a'\nimage_size = [8, 9]",
            "image_size has 2 values, but backbone names 1 trunk; give one",
        ),
        ("[model]\nimage_size = 7", "image_size = 7 is refused: input should be a whole number of pixels, at least 8"),
        ("[model]\nimage_size = true", "image_size = True is refused: input should be a whole number of pixels"),
        (
            "[model]\nbackbone = ['pixels', 'features:8']",
            "[model] 'features:8' stands for given features, which cannot stand beside those of a trunk",
        ),
        (
            "[model]\nbackbone = ['a', 'b']\nmode = 'finetune'",
            '[model] mode = "finetune" trains one trunk, but backbone names 2; name one, or set mode = "frozen".',
        ),
        ("loop = 5", "alloop.toml: 'loop' is a table; write [loop] and its settings below it."),
    ],
)
def test_a_wrong_setting_is_named_with_file_table_value_and_what_was_meant(text: str, message: str):
    first, _, rest = text.partition("\n")
    whole = f"{first}\n{rest}\n{VALID}" if "=" in first else f"{VALID}{text}"

    assert message in refusal(whole)


def test_every_wrong_setting_is_named_at_once():
    message = refusal(f"{VALID}[loop]\nbatch_size = -1\nmax_round = 3")

    assert "batch_size = -1" in message
    assert "did you mean 'max_rounds'?" in message


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("[]", "at least two classes"),
        ('["cat"]', "at least two classes"),
        ('["cat", ""]', "must not be empty"),
        ('["cat", " dog"]', "padded with spaces: ' dog'"),
        ('["cat", "a/b"]', "slashes or control characters, or be dots: 'a/b'"),
        ('["cat", "a\\nb"]', "slashes or control characters"),
        ('["cat", "dog", "cat"]', "class 'cat' is named twice"),
        ('["cat", 5]', "[project] classes[1] = 5 is refused"),
        ('["cat", ".."]', "'..'"),
    ],
)
def test_class_names_must_be_usable_as_labels_folders_and_cells(classes: str, message: str):
    assert message in refusal(f"[project]\nclasses = {classes}\n")


def test_classes_are_needed():
    assert "alloop.toml: needs 'project'." in refusal("[loop]\nbatch_size = 5\n")
    assert "alloop.toml: [project] needs 'classes'." in refusal("[project]\nname = 'pets'\n")


def test_a_file_that_is_not_toml_is_named_with_the_line():
    message = refusal("[project\nclasses = 1")

    assert "alloop.toml is not valid TOML" in message
    assert "line 1" in message


def test_a_folder_without_settings_is_no_workspace(tmp_path: Path):
    with pytest.raises(ConfigError, match="not an alloop workspace") as caught:
        load_config(tmp_path, {})

    assert "alloop init" in caught.value.hint


def test_a_file_that_is_not_text_is_named(tmp_path: Path):
    (tmp_path / "alloop.toml").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(ConfigError, match=r"alloop\.toml cannot be read"):
        load_config(tmp_path, {})


def test_the_environment_overrides_the_file_down_to_nested_tables():
    environ = {
        "ALLOOP__LOOP__BATCH_SIZE": "7",
        "ALLOOP__PROJECT__CLASSES": '["a", "b", "c"]',
        "ALLOOP__LABELING__PREANNOTATE": "true",
        "ALLOOP__LABELING__LABEL_STUDIO__URL": "http://box:8080",
        "ALLOOP__LABELING__IMAGES__ROOT": "/data/photos",
        "alloop__model__members": "2",
        "ALLOOP_WORKSPACE": "elsewhere",
        "PATH": "/bin",
    }

    config = parse_config(f"{VALID}[loop]\nbatch_size = 3\nmax_rounds = 4", "alloop.toml", environ)

    assert config.loop.batch_size == 7
    assert config.loop.max_rounds == 4
    assert config.project.classes == ("a", "b", "c")
    assert config.labeling.preannotate is True
    assert config.labeling.label_studio.url == "http://box:8080"
    assert config.labeling.images.root == Path("/data/photos")
    assert config.model.members == 2


def test_text_in_the_environment_needs_no_quotes_even_if_it_looks_like_a_number():
    environ = {"ALLOOP__PROJECT__NAME": "2026", "ALLOOP__MODEL__BACKBONE": "resnet18", "ALLOOP__MODEL__WEIGHTS": "none"}

    config = parse_config(VALID, "alloop.toml", environ)

    assert (config.project.name, config.model.backbone, config.model.weights) == ("2026", "resnet18", "none")


def test_label_studio_url_means_what_its_users_expect():
    environ = {"LABEL_STUDIO_URL": "http://sdk:9", "ALLOOP__LABELING__LABEL_STUDIO__URL": "http://other:9"}

    assert parse_config(VALID, "alloop.toml", environ).labeling.label_studio.url == "http://sdk:9"
    assert (
        parse_config(VALID, "alloop.toml", {"LABEL_STUDIO_URL": ""}).labeling.label_studio.url
        == "http://localhost:8080"
    )


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "ALLOOP__LOOP__BATCH_SIZE",
            "many",
            "environment variable ALLOOP__LOOP__BATCH_SIZE: [loop] batch_size = 'many'",
        ),
        ("ALLOOP__LOOP__BACTH_SIZE", "5", "environment variable ALLOOP__LOOP__BACTH_SIZE: [loop] has no setting"),
        ("ALLOOP__PROJECT__SEED__X", "5", "ALLOOP__PROJECT__SEED__X: 'seed' is a setting, not a table"),
        ("ALLOOP__LOOP", "5", "environment variable ALLOOP__LOOP: 'loop' is a table"),
        ("ALLOOP__LOOP__", "5", "environment variable ALLOOP__LOOP__: [loop] has no setting ''"),
    ],
)
def test_a_wrong_value_from_the_environment_names_the_variable_not_the_file(variable: str, value: str, message: str):
    text = refusal("[project]\nclasses = ['cat', 'dog']\nseed = 1\n[loop]\nbatch_size = 2", {variable: value})

    assert message in text
    assert "alloop.toml" not in text


def test_a_table_given_as_a_value_in_the_file_cannot_be_overridden_below():
    message = refusal(f"labeling = 5\n{VALID}", {"LABEL_STUDIO_URL": "http://sdk:9"})

    assert "LABEL_STUDIO_URL" in message


def test_a_refused_value_that_may_hold_a_secret_is_not_shown():
    for text in ("database = 'postgresql://ada:s3cret@db/pets'", "labeling = {label_studio = 's3cret'}"):
        assert "s3cret" not in refusal(f"{text}\n{VALID}")
    assert "s3cret" not in refusal(VALID, {"ALLOOP__DATABASE": "postgresql://ada:s3cret@db/pets"})
    assert "s3cret" not in refusal(f"{VALID}[labeling.label_studio]\napi_key = 's3cret'")
    assert "s3cret" not in refusal(f"{VALID}[database]\nurl = ['s3cret']")


def test_a_frozen_config_is_whole_but_has_no_database_url():
    config = parse_config(f"{VALID}[database]\nurl = 'postgresql://ada:s3cret@db/pets'", "alloop.toml", {})

    frozen = freeze_config(config)

    assert "s3cret" not in repr(frozen)
    assert "database" not in frozen
    again = validate_config(frozen, "round 0")
    assert again == config.model_copy(update={"database": again.database})


def test_a_round_does_not_store_the_options_of_another_packages_back_end():
    config = parse_config(f"{VALID}[labeling.options]\ntoken = 's3cret'", "alloop.toml", {})

    frozen = freeze_config(config)

    assert config.labeling.options == {"token": "s3cret"}
    assert "s3cret" not in repr(frozen)
    assert validate_config(frozen, "round 0").labeling.options == {}
    assert "s3cret" not in refusal(f"{VALID}[labeling]\noptions = 's3cret'")


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("[labeling]\nbackend = 'oracel'", "back end 'oracel'; did you mean 'oracle'?"),
        ("[acquisition]\nstrategy = 'margins'", "'margins'; did you mean 'margin'?"),
        ("[labeling]\nbackend = 'xyz'", "back end 'xyz'; there are: label-studio, csv, oracle."),
    ],
)
def test_a_refused_name_ends_with_one_mark(text, end):
    assert refusal(f"{VALID}{text}").endswith(end)


def test_flags_replace_single_settings():
    config = set_values(make_config(loop={"max_rounds": 3}), loop={"batch_size": 5}, model={"device": "cpu"})

    assert (config.loop.batch_size, config.loop.max_rounds, config.model.device) == (5, 3, "cpu")
    with pytest.raises(ConfigError, match=r"command line: \[loop\] batch_size = 0"):
        set_values(config, loop={"batch_size": 0})


def test_the_template_says_what_was_asked_and_is_commented():
    text = render_config(
        'the "pets"', ["cat", "Bär", "a'b\\\\c".replace("\\", "")], ["/photos/*.png"], "http://box:8080"
    )

    config = parse_config(text, "alloop.toml", {})

    assert config.project.name == 'the "pets"'
    assert config.project.classes == ("cat", "Bär", "a'bc")
    assert config.pool.images == ("/photos/*.png",)
    assert config.labeling.label_studio.url == "http://box:8080"
    defaults = make_config(project={"name": config.project.name, "classes": config.project.classes})
    assert set_values(config, pool={"images": []}, labeling={"label_studio": {}}) == defaults
    assert text.count("#") >= 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[train]\nloss = "mmce"\nmixing = "mixup"', "mixup makes soft targets, and mmce needs to know"),
        ('[train]\nmixing = "cutmix"', "choose mixup, or fine-tune"),
        ('[train]\nloss = "focal"\nloss_parameters = { gama = 2 }', "has no parameter 'gama'; did you mean 'gamma'?"),
        ('[train]\nloss = "focal"\nloss_parameters = { gamma = 0.5 }', "gamma of the loss focal must be at least 1"),
        (
            '[model]\nuncertainty = "single"\n[acquisition]\nstrategy = "mutual-information"',
            "the strategy mutual-information measures disagreement between members, but the model has only one",
        ),
        (
            '[model]\nuncertainty = "single"\n[acquisition]\nood_score = "mutual-information"',
            "mutual information measures disagreement between members, but there is only one; use msp instead",
        ),
        ('[model]\nuncertainty = "mc-dropout"\n[acquisition]\nood_score = "odin"', "set consistent_masks = true"),
        ('[model]\nbackbone = "features:8"\n[acquisition]\nood_score = "odin"', "the pool holds only features"),
        ('[model]\nmode = "finetune"\n[train]\nloss = "mmce"\nbatch_size = 8', "set batch_size to at least 16"),
    ],
)
def test_methods_that_do_not_go_together_are_refused_with_the_reason(text: str, message: str):
    assert message in refusal(f"{VALID}{text}")


def test_settings_in_another_encoding_are_refused_with_the_way_out(tmp_path: Path):
    (tmp_path / "alloop.toml").write_text(VALID, encoding="utf-16")

    with pytest.raises(ConfigError, match=r"alloop.toml cannot be read: it is not UTF-8\.\nSave it as UTF-8"):
        load_config(tmp_path, {})


@pytest.mark.parametrize(
    ("text", "trunks"),
    [
        ("", [("resnet50", "DEFAULT", None)]),
        ("backbone = ['pixels']\nweights = ['none']\nimage_size = [8]", [("pixels", "none", 8)]),
        ("backbone = ['a', 'b']\nweights = 'w'\nimage_size = 16", [("a", "w", 16), ("b", "w", 16)]),
        ("backbone = ['b', 'a']\nweights = ['v', 'w']", [("b", "v", None), ("a", "w", None)]),
        ("backbone = ['a', 'a']\nimage_size = [16, 8]", [("a", "DEFAULT", 16), ("a", "DEFAULT", 8)]),
    ],
)
def test_one_trunk_or_several_are_named_in_order_and_stored_as_written(text: str, trunks: list[tuple[object, ...]]):
    config = parse_config(f"{VALID}[model]\n{text}", "alloop.toml", {})

    assert [tuple(trunk) for trunk in config.model.trunks] == trunks
    assert validate_config(json.loads(json.dumps(freeze_config(config))), "stored") == config
    assert freeze_config(config)["model"]["backbone"] == (trunks[0][0] if len(trunks) == 1 else [t[0] for t in trunks])


def test_several_trunks_can_be_named_by_a_variable():
    config = parse_config(VALID, "alloop.toml", {"ALLOOP__MODEL__BACKBONE": '["pixels", "resnet18"]'})

    assert config.model.backbone == ("pixels", "resnet18")
