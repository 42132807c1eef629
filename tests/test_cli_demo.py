"""The demo: what it reads, what its workers compute, how it ends."""

import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from shmstore import cli
from shmstore.cli._errors import CommandError, UsageError
from shmstore.cli.demo import corpus, jobs, readers
from shmstore.cli.demo.crew import Crew


def _run_demo(*arguments):
    command = [sys.executable, "-W", "error", "-m", "shmstore", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(("name", "content"), [("words.txt", "a few words\n"), ("t.csv", "x\n1\n")])
def test_demo_on_a_file_prints_both_tables_and_nothing_on_stderr(tmp_path, name, content):
    """A small file is enough for the whole demo, without a terminal."""
    path = tmp_path / name
    path.write_text(content)
    done = _run_demo(str(path), "--workers", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "bytes copied" in done.stdout
    assert "both ways gave the same answers" in done.stdout


def test_demo_interrupted_ends_with_130_and_no_traceback(tmp_path):
    """Ctrl-C reaches the parent and its workers, and only the parent says so."""
    path = tmp_path / "numbers.npy"
    np.save(path, np.zeros(20_000_000))
    command = [sys.executable, "-m", "shmstore", "demo", str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as demo:
        while len(psutil.Process(demo.pid).children()) < 4:
            time.sleep(0.01)
        time.sleep(0.2)  # while the workers are started, Ctrl-C is ignored
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=60)
    assert (demo.returncode, errors) == (130, "shmstore: interrupted\n")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.txt", b"", "empty"),
        ("blob.bin", b"\0" * 100, "no text"),
        ("bad.npy", b"nothing", "no .npy file"),
        ("header.csv", b"a,b\n", "no column of numbers"),
        ("ragged.csv", b"1,2\n3,4\n5\n", "cannot read"),
    ],
)
def test_unreadable_file_ends_with_2_and_the_reason(tmp_path, capsys, name, content, reason):
    """What the demo cannot work on is named, with the reason."""
    path = tmp_path / name
    path.write_bytes(content)
    assert cli.main(["demo", str(path)]) == 2
    assert reason in capsys.readouterr().err


def test_missing_path_ends_with_2(tmp_path, capsys):
    """A path that is not there is no crash."""
    assert cli.main(["demo", str(tmp_path / "none")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_folder_is_read_as_the_kind_with_most_bytes(tmp_path):
    """Hidden and binary files do not count."""
    (tmp_path / "small.csv").write_text("1\n")
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / ".hidden.npy").write_bytes(b"x" * 100)
    (tmp_path / "blob").write_bytes(b"\0" * 100)
    assert bytes(corpus.load(tmp_path).data["text"]) == b"some text\n"


def test_passages_end_at_lines_and_cover_the_text(tmp_path):
    """No word is cut in two, none is lost."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {at}\n" for at in range(3000)))
    data = readers.read_text([path])
    text, starts = data["text"], data["starts"]
    assert starts[0] == 0
    assert starts[-1] == text.size
    assert len(starts) > 3
    assert set(text[starts[1:] - 1]) == {ord("\n")}


def test_words_are_counted_like_python_counts_them():
    """Words of two to eight bytes, without the one-letter and the long ones."""
    text = np.frombuffer(b"self.x = self.value, anotherlongword", np.uint8)
    words, counts = jobs.count_words([text])
    top = jobs.summarize_words([(words, counts)]).rows
    assert [(word, share) for word, share, _ in top] == [("self", "666.67"), ("value", "333.33")]


def test_gaps_in_a_table_are_left_out_of_the_figures(tmp_path):
    """Empty cells, words and infinities are no numbers."""
    path = tmp_path / "gaps.csv"
    path.write_text("a,b\n" + "1,inf\n,3\nx,3\n" * 40)
    labels, rows = readers.read_csv([path])
    mean, *_ = jobs.sample_rows({"rows": rows}, 0)
    assert labels == ["a", "b"]
    assert mean.tolist() == [1.0, 3.0]


def test_arrays_of_objects_are_refused(tmp_path):
    """A .npy file with Python objects in it is a pickle; none is loaded."""
    path = tmp_path / "objects.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="Python objects"):
        corpus.load(path)


@pytest.mark.usefixtures("process_helpers")
def test_worker_that_fails_is_reported_with_its_reason():
    """An exception in a worker comes home; its process stays usable until the end."""
    with Crew(1) as crew:
        crew.hand_over({"rows": np.zeros((4, 1))})
        with pytest.raises(CommandError, match="KeyError"):
            crew.map(jobs.sample_words, 1, lambda: None)


def test_worker_that_dies_is_reported():
    """A killed worker ends the wait for its answer."""
    with Crew(2) as crew:
        for pid in crew.pids:
            subprocess.run(["kill", "-9", str(pid)], check=True)
        with pytest.raises(CommandError, match="died"):
            crew.hand_over({"rows": np.zeros((1 << 20, 1))})
