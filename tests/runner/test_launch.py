"""The launcher: how processes end, what it says about them, and that nothing is left behind on any way out."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from pathlib import Path

import pytest

from janus import JanusError
from janus.runner import leash
from janus.runner.launch import TAIL_LINES, TAIL_WIDTH, launch
from janus.runner.leash import holders

SRC = Path(__file__).parents[2] / "src"
PYTHON = [sys.executable, "-I", "-S"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and PR_SET_PDEATHSIG")


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """A temporary folder of our own and a marker that every process of the test inherits."""
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    mark = uuid.uuid4().hex
    monkeypatch.setattr("janus.runner.launch.TERM_S", 0.5)
    monkeypatch.setenv("TMPDIR", str(tmp))
    monkeypatch.setattr("tempfile.tempdir", str(tmp))
    monkeypatch.setenv("JANUS_TEST_MARK", mark)
    yield Scene(tmp, f"JANUS_TEST_MARK={mark}")
    for pid in holders(f"JANUS_TEST_MARK={mark}"):
        os.kill(pid, signal.SIGKILL)


class Scene:
    def __init__(self, tmp, marker):
        self.tmp, self.marker = tmp, marker

    def others(self):
        return holders(self.marker)

    def assert_empty(self, within_s=0.0):
        give_up = time.monotonic() + within_s
        while (self.others() or os.listdir(self.tmp)) and time.monotonic() < give_up:
            time.sleep(0.02)
        assert self.others() == []
        assert os.listdir(self.tmp) == []

    def wait_for(self, path, timeout_s=20.0):
        give_up = time.monotonic() + timeout_s
        while not path.exists():
            assert time.monotonic() < give_up, f"{path} never appeared"
            time.sleep(0.01)


def sh(script):
    return ["sh", "-c", script]


# how processes end


def test_normal_exit_and_environment(scene):
    lines = []
    script = 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $JANUS_RENDEZVOUS $GLOO_SOCKET_IFNAME $OMP_NUM_THREADS $EXTRA"'
    ended = launch(sh(script), 3, deadline_s=20, env={"EXTRA": "x"}, on_line=lambda *line: lines.append(line))
    assert [(e.rank, e.exit_code, e.signal, e.killed_by_us, e.ok) for e in ended] == [
        (rank, 0, None, False, True) for rank in range(3)
    ]
    threads = max(1, (os.cpu_count() or 1) // 3)
    for rank, stream, line in lines:
        assert stream == "stdout"
        fields = line.split()
        assert fields[:3] == [str(rank), str(rank), "3"]
        assert fields[3].startswith(f"file://{scene.tmp}/janus-")
        assert fields[3].endswith("/store")
        assert fields[4:] == ["lo", os.environ.get("OMP_NUM_THREADS", str(threads)), "x"]
    assert len({line.split()[3] for _, _, line in lines}) == 1
    assert [e.tail for e in ended] == [(line,) for _, _, line in sorted(lines)]
    scene.assert_empty()


def test_the_folder_exists_and_is_private_while_running(scene):
    script = 'd=$(dirname "${JANUS_RENDEZVOUS#file://}"); test -d "$d" && stat -c %a "$d"'
    [ended] = launch(sh(script), 1, deadline_s=20)
    assert ended.tail == ("700",)


def test_failure_gives_others_their_grace(scene):
    """Rank 0 fails; rank 1 ends by itself within the grace; rank 2 has to be told."""
    script = "case $RANK in 0) exit 3;; 1) sleep 0.4; exit 5;; *) exec sleep 60;; esac"
    start = time.monotonic()
    ended = launch(sh(script), 3, deadline_s=60, grace_s=2.0)
    assert [(e.exit_code, e.signal, e.killed_by_us) for e in ended] == [
        (3, None, False),
        (5, None, False),
        (None, signal.SIGTERM, True),
    ]
    assert 1.9 < time.monotonic() - start < 20
    scene.assert_empty()


def test_death_by_signal_counts_as_failure(scene):
    ended = launch(sh("test $RANK = 0 && kill -9 $$; exec sleep 60"), 2, deadline_s=60, grace_s=0)
    assert [(e.signal, e.killed_by_us) for e in ended] == [(signal.SIGKILL, False), (signal.SIGTERM, True)]
    scene.assert_empty()


def test_deadline(scene):
    start = time.monotonic()
    ended = launch(sh("echo waiting; exec sleep 60"), 2, deadline_s=1.0)
    assert 0.9 < time.monotonic() - start < 15
    assert all(e.killed_by_us and e.signal == signal.SIGTERM and not e.ok for e in ended)
    assert all(e.tail == ("waiting",) and e.seconds > 0.5 for e in ended)
    scene.assert_empty()


def test_one_ended_well_and_one_hung(scene):
    ended = launch(sh("test $RANK = 0 || exec sleep 60"), 2, deadline_s=1.0)
    assert [(e.ok, e.killed_by_us) for e in ended] == [(True, False), (False, True)]


def test_child_that_ignores_sigterm(scene):
    start = time.monotonic()
    ended = launch(sh('trap "" TERM; while :; do sleep 0.2; done'), 1, deadline_s=0.8)
    assert (ended[0].exit_code, ended[0].signal, ended[0].killed_by_us) == (None, signal.SIGKILL, True)
    assert time.monotonic() - start < 8  # well before it would be given up and left to the final sweep
    scene.assert_empty()


def test_child_that_answers_sigterm_with_zero_is_not_ok(scene):
    ended = launch(sh('trap "exit 0" TERM; while :; do sleep 0.1; done'), 1, deadline_s=0.8)
    assert (ended[0].exit_code, ended[0].killed_by_us, ended[0].ok) == (0, True, False)


# descendants


@linux
@pytest.mark.parametrize("how", ["", "setsid "], ids=["same-session", "own-session"])
@pytest.mark.parametrize("end", ["exit 0", "exit 1", "exec sleep 60"], ids=["returns", "fails", "hangs"])
def test_grandchildren_are_gone(scene, how, end):
    """They hold the output pipe open and ignore SIGTERM."""
    script = f"""{how}sh -c 'trap "" TERM HUP; while :; do sleep 0.2; done' & echo started; {end}"""
    start = time.monotonic()
    ended = launch(sh(script), 2, deadline_s=1.5, grace_s=0.2)
    assert time.monotonic() - start < 20
    assert all(e.tail == ("started",) for e in ended)
    scene.assert_empty()


@linux
def test_a_grandchild_without_the_marker_goes_with_its_group(scene):
    script = "env -i sh -c 'sleep 60' & echo $!"
    [ended] = launch(sh(script), 1, deadline_s=20)
    stat = Path(f"/proc/{ended.tail[0]}/stat")
    assert ended.ok
    assert not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"  # where init reaps late


def test_signals_that_python_ignores_are_not_passed_on(scene):
    [ended] = launch(sh("grep SigIgn /proc/self/status || echo SigIgn: 0"), 1, deadline_s=20)
    ignored = int(ended.tail[0].split()[1], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1))


def test_stdin_is_empty(scene):
    [ended] = launch(sh("cat; echo end"), 1, deadline_s=20)
    assert ended.tail == ("end",)


# output


def test_streams_are_told_apart_and_the_last_line_needs_no_end(scene):
    lines = []
    launch(sh("echo out; echo err >&2; printf 'a\\r\\nlast'"), 1, deadline_s=20, on_line=lambda *x: lines.append(x))
    assert [x for x in lines if x[1] == "stdout"] == [(0, "stdout", "out"), (0, "stdout", "a"), (0, "stdout", "last")]
    assert [x for x in lines if x[1] == "stderr"] == [(0, "stderr", "err")]


def test_output_flood_and_bounded_tail(scene):
    """10 MB per stream and rank: more than any pipe holds, so a launcher that waited on one pipe would hang."""
    code = (
        "import sys; [print('x' * 99, file=f) for _ in range(100_000) for f in (sys.stdout, sys.stderr)]; print('end')"
    )
    count, ends = [0, 0], []

    def on_line(rank, stream, line):
        count[rank] += 1
        if line == "end":
            ends.append(rank)

    ended = launch([*PYTHON, "-c", code], 2, deadline_s=120, on_line=on_line, env={"PYTHONUNBUFFERED": ""})
    assert count == [200_001, 200_001]
    assert sorted(ends) == [0, 1]
    assert all(e.ok and len(e.tail) == TAIL_LINES for e in ended)


def test_long_lines_and_binary_output(scene):
    code = r"import sys; w = sys.stdout.buffer.write; w(b'\xff\x00\xfe\n' + b'y' * 1_000_000 + b'\nend\n')"
    lines = []
    [ended] = launch([*PYTHON, "-c", code], 1, deadline_s=60, on_line=lambda r, s, line: lines.append(line))
    assert lines[0] == "�\0�"
    assert lines[-1] == "end"
    assert "".join(lines[1:-1]) == "y" * 1_000_000
    assert max(map(len, lines)) < 200_000
    assert max(map(len, ended.tail)) == TAIL_WIDTH


def test_an_exception_in_on_line_ends_everything(scene):
    def on_line(rank, stream, line):
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        launch(sh("echo hello; exec sleep 60"), 2, deadline_s=60, on_line=on_line)
    scene.assert_empty()


def test_works_from_another_thread(scene):
    """Where no signal handler may be set."""
    out = []
    thread = threading.Thread(target=lambda: out.extend(launch(sh("exit 4"), 2, deadline_s=20)))
    thread.start()
    thread.join(30)
    assert [e.exit_code for e in out] == [4, 4]


# the launcher itself dies

LAUNCHER = """
import signal, sys
sys.path.insert(0, {src!r})
from janus.runner.launch import launch
sys.modules["janus.runner.launch"].TERM_S = 0.5
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored,
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and so does one under nohup
{before}
try:
    launch(["sh", "-c", {script!r}], 3, deadline_s=120, on_line=lambda *line: print(*line, flush=True))
finally:
    print("unwound", flush=True)
"""
HANG = """trap "" TERM; setsid sh -c 'trap "" TERM; sleep 100' & (trap "" TERM; sleep 100) & touch {path}$RANK; sleep 100"""


def start_launcher(scene, tmp_path, before=""):
    code = LAUNCHER.format(src=str(SRC), script=HANG.format(path=tmp_path / "up"), before=textwrap.dedent(before))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    for rank in range(3):
        scene.wait_for(tmp_path / f"up{rank}")
    assert len(scene.others()) >= 10  # the launcher and three families
    assert len(os.listdir(scene.tmp)) == 1
    return process


@linux
@pytest.mark.parametrize(
    ("number", "code", "unwound"),
    [
        (signal.SIGKILL, -signal.SIGKILL, b""),
        (signal.SIGTERM, 128 + signal.SIGTERM, b"unwound\n"),
        (signal.SIGHUP, 128 + signal.SIGHUP, b"unwound\n"),
        (signal.SIGINT, -signal.SIGINT, b"unwound\n"),  # Ctrl-C: Python ends itself by the signal
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_nothing_outlives_the_launcher(scene, tmp_path, capfd, number, code, unwound):
    process = start_launcher(scene, tmp_path)
    os.kill(process.pid, number)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, unwound)
    scene.assert_empty(within_s=10)


@linux
def test_the_kernel_kills_the_ranks_when_the_watcher_dies_too(scene, tmp_path, capfd):
    process = start_launcher(scene, tmp_path)
    watcher, *ranks = sorted(pid for pid in scene.others() if parent(pid) == process.pid)
    assert b"watch" in Path(f"/proc/{watcher}/cmdline").read_bytes().split(b"\0")
    assert len(ranks) == 3
    os.kill(watcher, signal.SIGKILL)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    give_up = time.monotonic() + 5
    while (left := set(ranks) & set(scene.others())) and time.monotonic() < give_up:
        time.sleep(0.02)
    assert not left
    for pid in scene.others():  # in this one case their descendants and the folder stay: nobody is left to remove them
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=10)


@linux
@pytest.mark.parametrize("how", ["", "setsid "], ids=["same-session", "own-session"])
def test_the_launcher_cleans_up_when_the_watcher_was_killed(scene, how):
    def on_line(rank, stream, line):
        [watcher] = [p for p in scene.others() if b"watch" in Path(f"/proc/{p}/cmdline").read_bytes().split(b"\0")]
        os.kill(watcher, signal.SIGKILL)

    launch(sh(f"{how}sleep 60 & echo up; exit 0"), 1, deadline_s=30, on_line=on_line)
    scene.assert_empty()


@linux
@pytest.mark.parametrize("role", [["run", "1", "echo", "ran"], ["watch", "1", "/no/such/folder", "NO_SUCH=marker"]])
def test_a_leash_without_its_launcher_ends_at_once(role):
    """The launcher died before the leash was in place; the number given is not its parent's."""
    process = subprocess.Popen(
        [*PYTHON, leash.__file__, *role], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.wait(20) == (128 + signal.SIGKILL if role[0] == "run" else 0)
    assert process.stdout.read() == b""
    process.stdin.close()
    process.stdout.close()


@linux
def test_a_second_ctrl_c_does_not_leave_anything(scene, tmp_path, capfd):
    process = start_launcher(scene, tmp_path)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.2)  # the clean-up now waits for those who ignore SIGTERM
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    scene.assert_empty(within_s=10)


@linux
def test_a_handler_of_the_user_stays_and_is_restored(scene):
    seen = []
    previous = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        ours = signal.getsignal(signal.SIGTERM)
        launch(sh("kill -TERM $PPID"), 1, deadline_s=20)
        assert seen == [1]
        assert signal.getsignal(signal.SIGTERM) is ours
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        launch(sh("true"), 1, deadline_s=20)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, previous)


@linux
def test_a_copy_of_the_pipe_in_a_fork_does_not_hide_the_death(scene, tmp_path, capfd):
    """A process forked from the launcher keeps the watcher's pipe open; its own descriptor of us still tells."""
    before = """
        import os, subprocess, time
        real = subprocess.Popen.__init__
        def forking(self, *a, **k):
            real(self, *a, **k)
            if k.get("stdin") == subprocess.PIPE and os.fork() == 0:
                os.environ.clear(); time.sleep(60); os._exit(0)
        subprocess.Popen.__init__ = forking
    """
    process = start_launcher(scene, tmp_path, before)
    fork = next(p for p in scene.others() if parent(p) == process.pid and p != process.pid and is_python(p))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    give_up = time.monotonic() + 10
    while (os.listdir(scene.tmp) or scene.others() != [fork]) and time.monotonic() < give_up:
        time.sleep(0.02)
    assert os.listdir(scene.tmp) == []
    assert scene.others() == [fork]
    os.kill(fork, signal.SIGKILL)
    process.communicate(timeout=10)


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def is_python(pid):
    return b"Popen.__init__" in Path(f"/proc/{pid}/cmdline").read_bytes()


# refusals


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"command": []}, "launch.command", "non-empty list"),
        ({"command": "sleep 1"}, "launch.command", "'sleep 1'"),
        ({"command": ["sh", 1]}, "launch.command", "strings"),
        ({"command": ["sh", "a\0b"]}, "launch.command", "NUL"),
        ({"command": ["no-such-program-here"]}, "launch.command", "'no-such-program-here'"),
        ({"world_size": 0}, "launch.world_size", ">= 1, got 0"),
        ({"world_size": True}, "launch.world_size", "got True"),
        ({"world_size": "2"}, "launch.world_size", "got '2'"),
        ({"deadline_s": 0}, "launch.deadline", "> 0, got 0"),
        ({"deadline_s": float("inf")}, "launch.deadline", "finite"),
        ({"deadline_s": float("nan")}, "launch.deadline", "got nan"),
        ({"grace_s": -1}, "launch.grace", ">= 0, got -1"),
        ({"env": {"RANK": "1"}}, "launch.env", "leave RANK out"),
        ({"env": {"A": 1}}, "launch.env", "'A': 1"),
        ({"env": {"A=B": "1"}}, "launch.env", "'A=B'"),
        ({"cwd": "/no/such/folder"}, "launch.cwd", "'/no/such/folder'"),
    ],
)
def test_refusals(scene, change, code, words):
    arguments = {"command": ["true"], "world_size": 1, "deadline_s": 5, **change}
    with pytest.raises(JanusError, match="launch") as caught:
        launch(arguments.pop("command"), arguments.pop("world_size"), **arguments)
    assert caught.value.code == code
    assert words in caught.value.message
    scene.assert_empty()


def test_unknown_options_are_refused_by_name():
    with pytest.raises(TypeError, match="'timeout'"):
        launch(["true"], 1, deadline_s=5, timeout=3)


def test_the_system_refuses_another_process(scene, monkeypatch):
    real, started = subprocess.Popen, []

    def popen(*args, **kwargs):
        if len(started) == 2:  # the watcher and rank 0
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(real(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(JanusError, match="rank 1 could not be started") as caught:
        launch(sh("exec sleep 60"), 3, deadline_s=60)
    assert caught.value.code == "launch.start"
    scene.assert_empty()


def test_cwd_and_relative_program(scene, tmp_path, monkeypatch):
    script = tmp_path / "tool"
    script.write_text("#!/bin/sh\npwd\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    [ended] = launch(["./tool"], 1, deadline_s=20, cwd="/")
    assert ended.tail == ("/",)


def test_a_file_that_cannot_be_executed_says_so(scene, tmp_path):
    script = tmp_path / "tool"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    [ended] = launch([str(script)], 1, deadline_s=20)
    assert ended.exit_code == 127
    assert "cannot start" in ended.tail[0]


def test_needs_no_torch():
    code = (
        "import sys, janus.runner.launch; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'transformers')))"
    )
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0
