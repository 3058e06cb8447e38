"""The section table: what it accepts, what it refuses and in which words."""

import csv

import numpy as np
import pytest

from n4flow.errors import InputError
from n4flow.sections import Section, SectionTable


def test_equal_sections_cover_every_plane_once_and_differ_by_at_most_one():
    for n_planes, count in [(10, 3), (270, 30), (7, 7), (101, 12)]:
        table = SectionTable.equal(n_planes, count)
        planes = [z for section in table for z in range(section.z_start, section.z_stop)]
        assert planes == list(range(n_planes))
        sizes = [section.z_stop - section.z_start for section in table]
        assert max(sizes) - min(sizes) <= 1
        assert len({section.id for section in table}) == count


def test_a_count_cuts_where_linumpy_cuts():
    table = SectionTable.equal(76, 50)
    assert [section.z_start for section in table] == np.rint(np.arange(50) * (76 / 50)).tolist()
    assert [section.z_start for section in table][:5] == [0, 2, 3, 5, 6]  # 0, 1.52, 3.04, 4.56, 6.08


def test_a_table_survives_writing_and_reading(tmp_path):
    table = SectionTable([Section("b", 4, 9, "damaged"), Section("a", 0, 4), Section("c", 9, 12)], 12)
    assert [section.id for section in table] == ["a", "b", "c"]
    table.write(tmp_path / "sections.tsv")
    assert SectionTable.read(tmp_path / "sections.tsv", 12) == table


def test_ids_that_a_spreadsheet_would_run_are_written_as_text_and_read_as_they_were(tmp_path):
    ids = ["=1+1", "+A1", "-A1", "@SUM(A1)", "'=x", "''+x", "-1.5", "+3", "'", "'a", "a=1"]
    table = SectionTable([Section(name, z, z + 1) for z, name in enumerate(ids)], len(ids))
    table.write(tmp_path / "sections.tsv")
    with (tmp_path / "sections.tsv").open(newline="") as stream:
        cells = [row[0] for row in list(csv.reader(stream, delimiter="\t"))[1:]]
    assert [cell for cell in cells if cell[0] in "=+-@"] == ["-1.5", "+3"]  # numbers stay numbers
    assert cells[0] == "'=1+1"
    again = SectionTable.read(tmp_path / "sections.tsv", len(ids))
    assert [s.id for s in again] == ids


def test_an_error_about_many_rows_or_long_cells_is_short(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("id,z_start,z_stop\n" + "".join(f"a,{2 * z},{2 * z + 1}\n" for z in range(100_000)))
    with pytest.raises(InputError) as caught:
        SectionTable.read(path, 200_000)
    assert str(caught.value).count("have the same id") + str(caught.value).count("are in no section") == 5
    assert len(str(caught.value)) < 1000
    path.write_text(f"id,z_start,z_stop\n{'a' * 100_000},0,x\n")
    with pytest.raises(InputError, match="row 1: z_start and z_stop must be whole numbers"):
        SectionTable.read(path, 4)
    path.write_text(f"id,z_start,z_stop,flag\nb,0,4,{'a' * 100_000}\n")
    with pytest.raises(InputError) as caught:
        SectionTable.read(path, 4)
    assert len(str(caught.value)) < 2100


def test_a_table_may_have_commas_other_columns_and_no_flags(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("id,thickness,z_start,z_stop\nx,50,0,3\ny,50,3,5\n")
    table = SectionTable.read(path, 5)
    assert [(s.id, s.z_start, s.z_stop, s.flag) for s in table] == [("x", 0, 3, "ok"), ("y", 3, 5, "ok")]


def test_a_table_may_be_quoted_and_have_any_line_ends(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b'"id","z_start","z_stop"\r\n"x",0,3\r\n"y",3,5\r\n')
    assert [s.id for s in SectionTable.read(path, 5)] == ["x", "y"]
    path.write_bytes("id,z_start,z_stop\nx,0,5\n".encode("utf-16"))
    with pytest.raises(InputError, match="is not a table of sections in UTF-8 text"):
        SectionTable.read(path, 5)


def test_flagged_sections_are_kept_out_of_statistics():
    table = SectionTable([Section("a", 0, 2), Section("b", 2, 5, "missing"), Section("c", 5, 6, "interpolated")], 6)
    assert table.usable_planes.tolist() == [True, True, False, False, False, False]
    assert np.array_equal(table.section_of_plane, [0, 0, 1, 1, 1, 2])


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([("a", 0, 4), ("b", 5, 10)], "planes 4 to 4 before row 2 are in no section"),
        ([("a", 0, 4), ("b", 3, 10)], "rows 1 and 2 overlap in planes 3 to 3"),
        ([("a", 0, 4), ("a", 4, 10)], "rows 1 and 2 have the same id 'a'"),
        ([("a", 0, 4), ("\t=1", 4, 10)], r"row 2 has the id '\t=1', expected characters that can be printed"),
        ([("a", 0, 4)], "planes 4 to 9 are in no section"),
        ([("a", 0, 12)], "row 1 ends at plane 12, the volume has 10 planes"),
        ([("a", 0, 5), ("b", 5, 5), ("c", 5, 10)], "row 2 has z_start 5 and z_stop 5"),
        ([("a", 0, 10, "torn")], "row 1 has flag 'torn', expected one of ok, missing, damaged, interpolated"),
    ],
)
def test_a_wrong_table_is_refused_with_its_rows(rows, sentence):
    with pytest.raises(InputError) as caught:
        SectionTable([Section(*row) for row in rows], 10)
    assert sentence in str(caught.value)
    assert "must cover planes 0 to 9 once" in str(caught.value)


def test_a_table_that_is_not_one_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        SectionTable.read(tmp_path / "none.csv", 4)
    path = tmp_path / "table.csv"
    path.write_text("name,z_start,z_stop\na,0,4\n")
    with pytest.raises(InputError, match=r"lacks column id; it has name, z_start, z_stop"):
        SectionTable.read(path, 4)
    path.write_text("id,z_start,z_stop\na,0,four\n")
    with pytest.raises(InputError, match=r"row 1: z_start and z_stop must be whole numbers, got '0' and 'four'"):
        SectionTable.read(path, 4)


@pytest.mark.parametrize("count", [0, 11])
def test_a_count_outside_the_stack_is_refused(count):
    with pytest.raises(InputError, match=rf"from 1 to the number of planes \(10\), got {count}"):
        SectionTable.equal(10, count)


def test_none_means_one_section_a_plane():
    assert len(SectionTable.coerce(None, 5)) == 5
