"""Files between the stages: what is damaged, or of another version, is said and never used."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from n4flow.commands import app
from n4flow.errors import InputError
from n4flow.statistics.measure import plane_histograms
from n4flow.statistics.plane_file import PieceFile, write_pieces

PIECES = [b"first" * 9, b"", b"third", bytes(range(256))]


def test_pieces_come_back(tmp_path) -> None:
    write_pieces(tmp_path / "a.npz", {"number": np.array(7)}, PIECES)
    file = PieceFile(tmp_path / "a.npz")
    assert len(file) == 4
    assert file.head.keys() == {"number"}
    assert file.head["number"] == 7
    for start, stop in ((0, 4), (1, 3), (3, 4), (2, 2)):
        assert file.read(start, stop) == PIECES[start:stop]


def test_every_changed_bit_of_a_piece_is_noticed(tmp_path) -> None:
    write_pieces(tmp_path / "a.npz", {}, PIECES)
    whole = (tmp_path / "a.npz").read_bytes()
    begin = whole.index(PIECES[0])
    for i in range(sum(map(len, PIECES))):
        wrong = bytearray(whole)
        wrong[begin + i] ^= 1 << i % 8
        (tmp_path / "b.npz").write_bytes(wrong)
        with pytest.raises(InputError, match=r"b\.npz is damaged \(piece \d of 4\); delete it"):
            PieceFile(tmp_path / "b.npz").read(0, 4)


def test_files_cut_short_empty_or_of_another_version_are_refused(tmp_path) -> None:
    write_pieces(tmp_path / "a.npz", {"number": np.arange(500)}, PIECES)
    whole = (tmp_path / "a.npz").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "b.npz").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"b\.npz is not whole: .*; delete it"):
            PieceFile(tmp_path / "b.npz").read(0, 4)
    np.savez(tmp_path / "c.npz", values=np.arange(3))
    with pytest.raises(InputError, match=r"c\.npz was not written by this version of n4flow"):
        PieceFile(tmp_path / "c.npz")


def test_a_command_names_the_damaged_file(tmp_path) -> None:
    for z in (0, 2):
        volume = np.random.default_rng(z).gamma(9, 10, (2, 30, 40)).astype(np.float32)
        plane_histograms(volume, volume > 90, volume < 80, z).save(tmp_path / f"histograms_{z:06d}.npz")
    file = tmp_path / "histograms_000002.npz"
    content = bytearray(file.read_bytes())
    content[-600] ^= 4
    file.write_bytes(content)
    asked = ["normalize", str(tmp_path), "--sections", "2", "--percentile-max", "99", "--out", str(tmp_path / "a.npz")]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code != 0
    assert isinstance(result.exception, (InputError, SystemExit))
    assert not (tmp_path / "a.npz").exists()
