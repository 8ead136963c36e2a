"""Progress for people: plain lines where there is no terminal."""

from pipelines.progress import Progress


def test_without_a_terminal_there_are_plain_lines(capsys, monkeypatch):
    """Files, hours, rate and errors, now and then and at the end; on stderr, so that stdout stays clean."""
    monkeypatch.setattr("pipelines.progress.PLAIN_INTERVAL_S", 0.0)
    with Progress("tokenizing", 3) as progress:
        progress.advance(files=2, seconds=3600)
        progress.advance(files=1, errors=1)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith("tokenizing: 2/3 files, 1.00 h, ")
    assert "left" in lines[0]
    assert "1 error" in lines[-1]
    assert len(lines) == 2


def test_it_can_be_quiet(capsys):
    """Not a character."""
    with Progress("tokenizing", 1, shown=False) as progress:
        progress.advance(files=1)
    assert capsys.readouterr() == ("", "")
