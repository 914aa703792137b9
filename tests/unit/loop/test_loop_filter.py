"""Images that may be asked about, restricted by paths or by attributes."""

from pathlib import Path

import pytest
from command_line import alloop
from factories import NOW, add_pool_image, at_bench, fake_sha256, make_image, make_project
from sqlalchemy import Engine

from alloop.errors import ConfigError, PoolError
from alloop.loop.choosing.attributes import add_attributes
from alloop.loop.choosing.filter import find_matching, is_glob, matching_condition
from alloop.store.images import ImageFacts, list_facts, list_locations, set_attributes, set_locations
from alloop.store.session import reading, transaction


@pytest.fixture
def pool(database: Engine) -> Engine:
    """Images 1 to 4: two sites, years of which one is not known, one wide image with a second path."""
    with transaction(database) as session:
        ids = [
            add_pool_image(session, number, path=f"/pool/site-{'ab'[number % 2]}/{number}.png", width=8 * number)
            for number in (1, 2, 3, 4)
        ]
        set_locations(session, [make_image(4, path="/other/x.png")], {fake_sha256(4): ids[3]}, NOW)
        set_attributes(
            session,
            {
                ids[0]: {"site": "A", "year": "2019"},
                ids[1]: {"site": "B", "year": "2021"},
                ids[2]: {"site": "A", "year": "100000"},
                ids[3]: {"site": "B", "year": ""},
            },
        )
    return database


def matching(database: Engine, only: str) -> list[int]:
    with reading(database) as session:
        return sorted(find_matching(session, only))


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("/pool/site-a/*", [2, 4]),
        ("site-a/*", [2, 4]),
        ("*.png", [1, 2, 3, 4]),
        ("[13].png", [1, 3]),
        ("x.pn?", [4]),
        ("te-a/*", []),
        ("SITE-A/*", []),
    ],
)
def test_a_glob_is_matched_from_the_root_or_from_any_folder(pool: Engine, only: str, expected: list[int]):
    assert matching(pool, only) == expected


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("site = 'A'", [1, 3]),
        ("year > 2020", [2, 3]),  # as numbers: as texts '100000' is less than '2020'
        ("year is null", [4]),
        ("not (year > 2020)", [1]),
        ("site in ('B') and width >= 32", [4]),
        ("file like '%.PNG' and path glob '/pool/site-b/*'", [1, 3]),
        ("upper(format) = 'PNG' -- all", [1, 2, 3, 4]),
        ("1 = 1) or (1 = 1", [1, 2, 3, 4]),
        ("lower(site) || '*' = 'a*'", [1, 3]),
    ],
)
def test_a_condition_is_about_what_is_known_of_each_image(pool: Engine, only: str, expected: list[int]):
    assert matching(pool, only) == expected


@pytest.mark.parametrize(
    ("only", "because"),
    [
        ("sitee = 'A'", "no such column: sitee"),
        ("site = ", "syntax error"),
        ("site = 'A'; delete from image", "syntax error"),
        ("site = 'A'); delete from image; select (1", "one statement"),
        ("exists (select * from sqlite_master) = 1", "prohibited|not authorized"),
        ("load_extension('x') = 1", "not authorized|no such function"),
        ("randomblob(1000000000) = 1", "not authorized"),
        ("image", "no such column: image"),
    ],
)
def test_a_condition_that_cannot_be_used_names_the_columns(pool: Engine, only: str, because: str):
    with pytest.raises(ConfigError, match=because) as caught:
        matching(pool, only)

    assert "width, height, format, site, year" in caught.value.hint


def test_an_attribute_that_is_not_always_a_number_is_compared_as_text(pool: Engine):
    with transaction(pool) as session:
        set_attributes(session, {4: {"year": "unknown"}})

    assert matching(pool, "year > '2020'") == [2, 4]


CELLS = {
    "site": ("A", "B", "A", ""),
    "year": ("2019", "2021", "unknown", ""),
    "n": ("-1", "2.5", "1e3", ""),
    "month": ("001", "10", "11", ""),
    "dose": ("3,5", "4", "5", ""),
    "good": ("TRUE", "false", "TRUE", ""),
    "day": ("2024-01-31", "2024-02-01", "2025-01-01", ""),
    "odd": ("nan", "inf", "1e999", ""),
    "serial": ("9007199254740993", "9007199254740992", "3", ""),
    "huge": ("18446744073709551617", "1", "2", ""),
}
# Images 1 to 4 with a column of each kind; the last one has no cell.
TYPED = [
    ImageFacts(
        image_id,
        (f"/pool/site-{'ab'[image_id % 2]}/{image_id}.png",),
        8 * image_id,
        8,
        "PNG",
        {name: cells[image_id - 1] for name, cells in CELLS.items() if cells[image_id - 1]},
    )
    for image_id in (1, 2, 3, 4)
]


@pytest.mark.parametrize(
    ("only", "cell", "image"),
    [
        ("year > 2020", "'unknown'", "site-b/3.png"),
        ("not year<=2020", "'unknown'", "site-b/3.png"),
        ("n > 0 or (site = 'A' and YEAR between 2019 and 2021)", "'unknown'", "site-b/3.png"),
        ("2020 < year", "'unknown'", "site-b/3.png"),
        ("year in (2019, 2021)", "'unknown'", "site-b/3.png"),
        ("year not in (2019)", "'unknown'", "site-b/3.png"),
        ('"year" = -2019', "'unknown'", "site-b/3.png"),
        ("year + 1 > '5'", "'unknown'", "site-b/3.png"),
        ("abs(year) = 2019", "'unknown'", "site-b/3.png"),
        ("coalesce(year, 0) > 2020", "'unknown'", "site-b/3.png"),
        ("case when year > 2020 then 1 else 0 end = 1", "'unknown'", "site-b/3.png"),
        ("year is 2019", "'unknown'", "site-b/3.png"),
        ("year = n", "'unknown'", "site-b/3.png"),
        ("year", "'unknown'", "site-b/3.png"),
        ("month > 5", "'001'", "site-b/1.png"),
        ("dose >= 3.5", "'3,5'", "site-b/1.png"),
        ("good = true", "'TRUE'", "site-b/1.png"),
        ("good and n > 0", "'TRUE'", "site-b/1.png"),
        ("day > 2024", "'2024-01-31'", "site-b/1.png"),
        ("odd < 5", "'nan'", "site-b/1.png"),
        ("huge = 18446744073709551616", "'18446744073709551617'", "site-b/1.png"),
        ("site <> 0", "'A'", "site-b/1.png"),
        ("path > 5", "'/pool/site-b/1.png'", "site-b/1.png"),
    ],
)
def test_a_text_that_is_taken_for_a_number_is_refused_with_its_cell(only: str, cell: str, image: str):
    with pytest.raises(ConfigError) as caught:
        matching_condition(TYPED, only)

    assert f"its value is {cell} for /pool/{image}" in caught.value.message
    assert "in quotes" in caught.value.hint


@pytest.mark.parametrize(
    ("only", "words"),
    [
        ("n > 'many'", "'many'"),
        ("substr(day, 1, 4) >= 2025", "substr(day , 1 , 4)"),
        ("length(site) = '1'", "'1'"),
        ("n || '' > 0", "n || ''"),
        ("width * 2 > '5'", "'5'"),
    ],
)
def test_a_text_beside_a_number_is_refused_by_its_words(only: str, words: str):
    with pytest.raises(ConfigError) as caught:
        matching_condition(TYPED, only)

    assert f"uses the text {words} as a number" in caught.value.message


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("year > '2020'", [2, 3]),
        ("year = 'unknown' or year in ('2019')", [1, 3]),
        ("year <> 'unknown' and cast(year as integer) > 2020", [2]),
        ("year is not null and n > 0", [2, 3]),
        ("n between -1 and '2.5'", [1, 2]),
        ("month = '001'", [1]),
        ("month = '1'", []),
        ("good = 'TRUE'", [1, 3]),
        ("day between '2024-01-01' and '2024-12-31'", [1, 2]),
        ("substr(day, 1, 4) = '2024' and length(site) = 1", [1, 2]),
        ("case when n > 0 then 'a' else 'b' end = 'a'", [2, 3]),
        ("serial = 9007199254740993", [1]),
        ("coalesce(n, 0) >= 0", [2, 3, 4]),
        ("year like '20%' and upper(site) in ('A', 'B')", [1, 2]),
        ("(n) > (0) and (site) = ('A')", [3]),
        ("n > width", [3]),
        ("site = 'A' collate nocase /* > 5 */ -- year > 5", [1, 3]),
    ],
)
def test_texts_are_compared_with_texts_and_numbers_with_numbers(only: str, expected: list[int]):
    assert sorted(matching_condition(TYPED, only)) == expected


def test_run_names_the_cell_that_is_no_number_before_it_asks_about_anything(tmp_path: Path):
    project = make_project(tmp_path, n=8, acquisition={"only": "year > 2020"}, pool={"near_duplicates": False})
    rows = "".join(f"{n:04d}.png,{2018 + n if n else 'unknown'}\n" for n in range(8))
    (tmp_path / "a.csv").write_text(f"file,year\n{rows}")
    at_bench(project, add_attributes, tmp_path / "a.csv")

    refused = alloop("run", "-C", project.folder)

    assert (refused.code, "'unknown' for" in refused.err, "0000.png" in refused.err) == (2, True, True)
    assert "alloop pool add --attributes" in refused.err
    (tmp_path / "a.csv").write_text("file,year\n0000.png,\n")
    at_bench(project, add_attributes, tmp_path / "a.csv")
    assert alloop("run", "-C", project.folder).code == 0


@pytest.mark.parametrize(
    ("only", "expected"),
    [("a/*.jpg", True), ("photos in 2020/*", True), ("a = '*'", False), ("path like 'a%?'", False), ("plain", False)],
)
def test_a_glob_has_a_wildcard_and_compares_nothing(only: str, expected: bool):
    assert is_glob(only) is expected


def described(project) -> dict[str, dict[str, str]]:
    with reading(project.database) as session:
        return {Path(image.paths[0]).name: dict(image.attributes) for image in list_facts(session) if image.attributes}


def test_attributes_come_from_a_table_and_can_be_changed_and_taken_away(tmp_path: Path):
    project = make_project(tmp_path, n=3)
    with reading(project.database) as session:
        sha256 = next(place.sha256 for place in list_locations(session) if place.path.endswith("0002.png"))
    (tmp_path / "a.csv").write_text(
        f"file,sha256,site,year\n{project.folder}/photos/0000.png,,A,2019\n0001.png,,B,2020\n,{sha256},C,\n"
    )

    assert at_bench(project, add_attributes, tmp_path / "a.csv") == (3, ("site", "year"))
    assert described(project) == {
        "0000.png": {"site": "A", "year": "2019"},
        "0001.png": {"site": "B", "year": "2020"},
        "0002.png": {"site": "C"},
    }

    (tmp_path / "b.csv").write_text("file,year\n0000.png,\n0001.png,2021\n")
    at_bench(project, add_attributes, tmp_path / "b.csv")
    assert described(project)["0000.png"] == {"site": "A"}
    assert described(project)["0001.png"] == {"site": "B", "year": "2021"}


def test_an_attribute_keeps_its_capitals(tmp_path: Path):
    project = make_project(tmp_path, n=2)
    (tmp_path / "a.csv").write_text("file,Site\n0000.png,A\n")
    at_bench(project, add_attributes, tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("file,site\n0001.png,B\n")

    with pytest.raises(
        PoolError, match="already have an attribute 'Site', and 'site' differs from it only in capitals"
    ):
        at_bench(project, add_attributes, tmp_path / "b.csv")

    assert described(project) == {"0000.png": {"Site": "A"}}
    with reading(project.database) as session:
        assert len(find_matching(session, "SITE = 'A'")) == 1


@pytest.mark.parametrize(
    ("content", "because"),
    [
        ("file,site\n0000.png,A\nnone.png,B\n", "line 3: none.png is not in the pool"),
        ("file,site\n0000.png,A\n0000.png,B\n", "line 3: an earlier line has other values for the same image"),
        ("site\nA\n", "has the columns site"),
        ("file\n0000.png\n", "has the columns file"),
        ("file,width\n0000.png,3\n", "cannot be called 'width'"),
        ("file,a b\n0000.png,3\n", "cannot be called 'a b'"),
        ('file,"x"") drop"\n0000.png,3\n', "cannot be called"),
        ("file,Site,site\n0000.png,3,4\n", "two columns 'Site'"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_as_a_whole(tmp_path: Path, content: str, because: str):
    project = make_project(tmp_path, n=2)
    (tmp_path / "a.csv").write_text(content)

    with pytest.raises(PoolError, match=because):
        at_bench(project, add_attributes, tmp_path / "a.csv")

    assert described(project) == {}


def test_only_images_that_match_are_asked_about_and_a_wrong_condition_stops_a_run_at_once(tmp_path: Path):
    project = make_project(tmp_path, n=40, acquisition={"only": "half = 1"}, pool={"near_duplicates": False})
    at = ("-C", project.folder)

    refused = alloop("run", *at)
    assert (refused.code, "no such column: half" in refused.err) == (2, True)

    (tmp_path / "a.csv").write_text("file,half\n" + "".join(f"{n:04d}.png,{n % 2}\n" for n in range(40)))
    added = alloop("pool", "add", "--attributes", tmp_path / "a.csv", "--json", *at)
    assert (added.data["described"], added.data["attributes"]) == (40, ["half"])
    alloop("run", "--rounds", "2", *at)

    for number in (0, 1):
        shown = alloop("round", "show", str(number), "--json", *at).data["queries"]
        mine = [query for query in shown if query["reason"] != "holdout"]
        with reading(project.database) as session:
            odd = {image.image_id for image in list_facts(session) if image.attributes["half"] == "1"}
        assert mine
        assert {query["image_id"] for query in mine} <= odd
