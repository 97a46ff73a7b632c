"""The stages of tools/test: all run, each one's output stays together, one that fails is named."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import stages
from stages import LANES, Stage, run

TOOL = Path(__file__).parent.parent / "tools" / "test"


def shell(script, name):
    return Stage(("sh", "-c", script, name))


def test_all_run_and_the_one_that_fails_is_named(tmp_path):
    lanes = [
        [shell("echo first; exit 3", "--bad"), shell("echo second >&2", "--good")],
        [shell("echo third", "--other")],
    ]
    with open(tmp_path / "out", "w+b") as out:
        assert run(lanes, out) == 1
        out.seek(0)
        lines = out.read().decode().splitlines()
    assert lines[lines.index("first") - 1].startswith("===== bad          FAILED (3)")
    assert lines[lines.index("second") - 1].startswith("===== good         passed")
    assert lines.index("first") < lines.index("second")
    assert [line.split()[:3] for line in lines[-3:]] == [
        ["tools/test:", "bad", "FAILED"],
        ["tools/test:", "good", "passed"],
        ["tools/test:", "other", "passed"],
    ]


def test_all_pass(tmp_path):
    with open(tmp_path / "out", "w+b") as out:
        assert run([[shell("true", "--a")], [shell("true", "--b")]], out) == 0


def test_words_of_what_is_under_way(tmp_path):
    with open(tmp_path / "out", "w+b") as out:
        run([[shell("echo done", "--short")], [shell("true", "--other")]], out, word=0.01)
        out.seek(0)
        lines = out.read().decode().splitlines()
    words = lines.index("tools/test: short for 0 s; other for 0 s")
    assert words < lines.index("done")


def test_lanes_run_side_by_side(tmp_path):
    """Each waits for the other: one after the other they would wait for ever."""
    for name in "ab":
        os.mkfifo(tmp_path / name)
    lanes = [
        [shell(f"cd {tmp_path}; echo 1 >a; cat b", "--a")],
        [shell(f"cd {tmp_path}; cat a; echo 1 >b", "--b")],
    ]
    with open(tmp_path / "out", "w+b") as out:
        assert run(lanes, out) == 0


def test_ctrl_c_ends_the_stages_and_begins_no_more(tmp_path):
    """As a terminal does it, to all processes at once."""
    os.mkfifo(tmp_path / "begun")
    script = f"""
import sys
from stages import Stage, run
lanes = [[Stage(("sh", "-c", "echo 1 >{tmp_path}/begun; exec sleep 100", "--long")),
          Stage(("touch", "{tmp_path}/late"))]]
sys.exit(run(lanes, sys.stdout.buffer))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=Path(stages.__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    (tmp_path / "begun").read_text()
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "long         FAILED (-2)" in out
    assert not (tmp_path / "late").exists()


def test_the_tool_runs_the_stages_and_knows_every_one():
    text = TOOL.read_text()
    assert """\n'') exec "$python" -P tests/stages.py "$project/tools/test" ;;\n""" in text
    assert [name for lane in LANES for name in lane if f"\n{name})\n" not in text] == []
