"""Long lists of values go to the database in pieces that every database takes."""

from alloop.store.session import in_chunks


def test_a_long_list_comes_in_pieces_of_at_most_500_in_its_order() -> None:
    pieces = list(in_chunks(number for number in range(1201)))

    assert [len(piece) for piece in pieces] == [500, 500, 201]
    assert [number for piece in pieces for number in piece] == list(range(1201))


def test_a_list_that_ends_at_a_boundary_has_no_empty_piece() -> None:
    assert [len(piece) for piece in in_chunks([0] * 1000)] == [500, 500]
    assert list(in_chunks([])) == []
