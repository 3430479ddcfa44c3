"""launch/local, tpu, gke and slurm: what a dry run prints is what is run, and what is run does what it says, as far as it can be
seen without a pod: against stand-ins for gcloud, kubectl and SLURM, and for local with real processes and real signals."""

import os
import re
import signal
import socket
import subprocess
import time

import pytest
import yaml
from conftest import ROOT

LAUNCHERS = ("local", "tpu", "gke", "slurm")
AWKWARD = ["two words", "it's", '"quoted"', "$HOME $$ $(id) `id`", "", "a=b", "~", "*", "\\", "& ; | # {x} ${hosts} !", "-"]
TRAIN = ["noisesched", "train", "--workdir=gs://b/runs/digits"]

# Each call of it adds a record: its words, then what it is given to read. `describe` finds the pod at the second look.
FAKE = r"""#!/usr/bin/env bash
input=
case ${0##*/} in kubectl | sbatch) input=$(cat) ;; esac
printf '%s\0' "${0##*/}" "$@" "$input" "${JAX_PLATFORMS-}" "${XLA_FLAGS-}" "${JAX_LOCAL_DEVICE_IDS-}" END_OF_RECORD >>"$RECORD"
case "${0##*/} $*" in
    *" describe "*) if [ -e "$RECORD.asked" ]; then echo ACTIVE; else touch "$RECORD.asked"; echo WAITING_FOR_RESOURCES; fi ;;
    srun*) exit "${SRUN_CODE:-0}" ;;
esac
"""
FAKES = ("gcloud", "kubectl", "sbatch", "srun", "scontrol", "scancel", "git", "tail", "noisesched")


class Shell:
    """Runs the launchers where the stand-ins come first; `records` is what those were told since it was last asked."""

    def __init__(self, folder):
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.record = folder / "record"
        for name in FAKES:
            (self.bin / name).write_text(FAKE)
            (self.bin / name).chmod(0o755)
        self.environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "RECORD": str(self.record),
            "VENV": str(folder / "no environment"),
            "IMAGE": "registry/noisesched",
        }

    def __call__(self, *words, **variables):
        words = [str(ROOT / words[0]), *words[1:]] if words[0].startswith("launch/") else list(words)
        done = subprocess.run(words, env=self.environment | variables, cwd=self.bin, text=True, capture_output=True, timeout=300)
        return done.returncode, done.stdout, done.stderr

    def records(self):
        text = self.record.read_text() if self.record.exists() else ""
        for file in (self.record, self.record.with_suffix(".asked")):
            file.unlink(missing_ok=True)
        return [record.split("\0")[:-1] for record in text.split("END_OF_RECORD\0")[:-1]]


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


# -- all of them


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_help_is_the_head_of_the_file(shell, launcher):
    path = ROOT / "launch" / launcher
    assert shell("bash", "-n", str(path)) == (0, "", "")
    code, out, err = shell(f"launch/{launcher}", "--help")
    head = [line for line in path.read_text().split("\n")[1:] if line.startswith("#")]
    assert (code, err) == (0, "") and out.startswith(head[0][2:]) and len(out.splitlines()) > 8
    for variable in re.findall(r"\$\{([A-Z]+):", path.read_text()):  # those that it reads, it explains
        assert variable in ("XLA_FLAGS", "TMPDIR") or re.search(rf"^  {variable} ", out, re.M), variable
    assert shell.records() == []


ERRORS = [
    ("local", {}, "number of processes"),
    ("local 0 -- ls", {}, "not '0'"),
    ("local 2", {}, "command after --"),
    ("local 2 -- no_such_command", {}, "'no_such_command'"),
    ("local 2 -- ls", {"DEVICES": "tpu:1"}, "DEVICES='tpu:1'"),
    ("local 2 -- ls", {"PORT": "65536"}, "PORT='65536'"),
    ("local 2 -- ls", {"GRACE": "soon"}, "GRACE='soon'"),
    ("tpu", {}, "create, install, run, follow, stop or delete"),
    ("tpu remove pod", {}, "not 'remove'"),
    ("tpu create", {}, "NAME=''"),
    ("tpu create Pod_1", {}, "NAME='Pod_1'"),
    ("tpu create pod", {"ZONE": "mars"}, "ZONE='mars'"),
    ("tpu create pod", {"TYPE": "v9-8"}, "TYPE='v9-8'"),
    ("tpu create pod", {"SPOT": "yes"}, "SPOT='yes'"),
    ("tpu run pod", {}, "command after --"),
    ("tpu stop pod -- ls", {}, "command"),
    ("tpu stop pod now", {}, "'now'"),
    ("gke", {}, "manifest, run, follow or stop"),
    ("gke run Digits -- ls", {}, "NAME='Digits'"),
    ("gke run digits", {}, "command after --"),
    ("gke run digits -- ls", {"IMAGE": ""}, "IMAGE=''"),
    ("gke run digits -- ls", {"ACCELERATOR": "gpu"}, "ACCELERATOR='gpu'"),
    ("gke run digits -- ls", {"TOPOLOGY": "big"}, "TOPOLOGY='big'"),
    ("gke run digits -- ls", {"TOPOLOGY": "3x3"}, "TOPOLOGY='3x3'"),
    ("gke run digits -- ls", {"HOSTS": "3"}, "HOSTS='3'"),
    ("gke run digits -- ls", {"ACCELERATOR": "nvidia-l4", "TOPOLOGY": "2x2"}, "TOPOLOGY='2x2'"),
    ("gke run digits -- ls", {"CHIPS": "0"}, "CHIPS='0'"),
    ("gke run digits -- ls", {"RESTARTS": "-1"}, "RESTARTS='-1'"),
    ("gke stop digits -- ls", {}, "command"),
    ("slurm", {}, "run, follow or stop"),
    ("slurm run", {}, "command after --"),
    ("slurm run -- ls", {"NODES": "some"}, "NODES='some'"),
    ("slurm run -- ls", {"GPUS": "-1"}, "GPUS='-1'"),
    ("slurm run -- ls", {"TIME": "long"}, "TIME='long'"),
    ("slurm stop digits", {}, "number of the job"),
]


@pytest.mark.parametrize("words, variables, message", ERRORS, ids=[f"{words} {v}" for words, v, _ in ERRORS])
def test_errors_are_one_line_that_names_the_value_before_anything_is_done(shell, words, variables, message):
    code, out, err = shell(*f"launch/{words}".split(), **variables)
    name = f"launch/{words.split()[0]}"
    assert (code, out) == (2, "") and message in err
    assert err.count("\n") == 1 and err.startswith(f"{name}: ") and f"{name} --help" in err
    assert shell.records() == []


@pytest.mark.parametrize("name", ["a b", "x; touch made", "$(touch made)", "it's", '"', "-", "", "a\nb"])
@pytest.mark.parametrize("words", ["tpu delete", "gke stop", "slurm stop"])
def test_names_that_a_shell_would_read_are_refused(shell, words, name):
    launcher, verb = words.split()
    code, out, _ = shell(f"launch/{launcher}", verb, name)
    assert (code, out) == (2, "") and shell.records() == [] and not (shell.bin / "made").exists()


CALLS = [
    ("local 2", TRAIN, {"DEVICES": "cpu:4", "XLA_FLAGS": "--a --b"}),
    ("local 3", ["noisesched", *AWKWARD], {"DEVICES": "gpu:2"}),
    ("tpu create pod", [], {}),
    ("tpu create pod --network=mine --labels=a=b", [], {"TYPE": "v5p-32", "ZONE": "us-east5-a", "SPOT": "0"}),
    ("tpu install pod", [], {}),
    ("tpu run pod", ["noisesched", *AWKWARD], {}),
    ("tpu follow pod", [], {}),
    ("tpu stop pod", [], {}),
    ("tpu delete pod", [], {}),
    ("gke run digits", ["noisesched", *AWKWARD], {}),
    ("gke run digits", TRAIN, {"ACCELERATOR": "nvidia-l4", "CHIPS": "1", "SPOT": "0"}),
    ("gke follow digits", [], {}),
    ("gke stop digits", [], {}),
    ("slurm run --partition=gpu", ["noisesched", *AWKWARD], {}),
    ("slurm run", TRAIN, {"GPUS": "0", "NODES": "1"}),
    ("slurm follow 17", [], {}),
    ("slurm stop 17", [], {}),
]


@pytest.mark.parametrize("words, command, variables", CALLS, ids=[f"{words} {v}" for words, _, v in CALLS])
def test_a_dry_run_prints_what_is_run(shell, words, command, variables):
    if words.startswith("tpu"):
        no_sleep(shell)
    words = [*f"launch/{words}".split(), *(["--", *command] if command else [])]
    code, printed, err = shell(words[0], "--dry-run", *words[1:], **variables)
    assert (code, err) == (0, "") and shell.records() == []
    code, _, err = shell(*words, **variables)
    assert (code, err) == (0, "")
    run = shell.records()
    assert run
    assert shell("bash", "-c", printed)[0] == 0  # pasted
    pasted = shell.records()
    if words[0] == "launch/local":  # where the processes start in any order
        run, pasted = sorted(run), sorted(pasted)
    assert pasted == run


# -- local


@pytest.mark.parametrize("devices", ["cpu:4", "gpu:2"])
def test_local_tells_each_process_who_it_is_and_which_devices_it_has(shell, devices):
    environment = shell.bin.parent / "an environment"
    environment.mkdir()
    (environment / "bin").symlink_to(shell.bin)
    given = {"DEVICES": devices, "PORT": str(free_port()), "XLA_FLAGS": "--mine", "VENV": str(environment)}
    assert shell("launch/local", "2", "--", *TRAIN, "a b", **given)[0] == 0
    for k, (*words, _, platform, flags, ids) in enumerate(sorted(shell.records())):
        told = {f"--coordinator=127.0.0.1:{given['PORT']}", "--num_processes=2", f"--process_id={k}"}
        assert words[: len(TRAIN) + 1] == [*TRAIN, "a b"] and set(words[len(TRAIN) + 1 :]) == told
        if devices == "cpu:4":
            assert platform == "cpu" and flags == "--mine --xla_force_host_platform_device_count=4"
        else:
            assert ids == ("0,1", "2,3")[k] and flags == "--mine"


STAND_IN = r"""
note() { echo "$1"; echo "$1" >>"$STAND_IN_LOG.$number"; }
number=${@: -1}; number=${number#--process_id=}
told=0
trap 'told=$((told + 1)); note "told $told"; sleep 0.3; note saved; exit 75' TERM
trap 'told=$((told + 1)); note "told $told"; sleep 0.3; note saved; exit 75' INT
if [ "${STUBBORN-}" = "$number" ]; then trap '' TERM; fi
note up
until [ -e "$STAND_IN_LOG.fail" ] && [ "$number" = 1 ]; do sleep 0.02; done
case ${FAILURE} in kill) kill -KILL $$ ;; *) exit "$FAILURE" ;; esac
"""


@pytest.fixture
def job(tmp_path):
    """`job(FAILURE="3")`: launch/local with two stand-ins that are up, of which number 1 fails when `job.fail` is called."""
    log = tmp_path / "log"
    started = []

    def start(**variables):
        environment = {"PATH": os.environ["PATH"], "STAND_IN_LOG": str(log), "VENV": str(tmp_path), "PORT": str(free_port())}
        command = [str(ROOT / "launch" / "local"), "2", "--", "bash", "-c", STAND_IN, "stand-in"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, env=environment | {"FAILURE": "0"} | variables, text=True, **pipes)
        started.append(process)
        while not all(os.path.exists(f"{log}.{k}") for k in (0, 1)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        return process

    start.fail = lambda: open(f"{log}.fail", "w").close()
    yield start
    for process in started:
        if process.poll() is None:
            process.kill()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def lines_of(out, number):
    return [line for line in out.splitlines() if line.startswith(f"[{number}] ")]


@pytest.mark.parametrize("failure, code", [("3", 3), ("kill", 137)])
def test_local_stops_the_others_when_one_dies(job, failure, code):
    process = job(FAILURE=failure)
    job.fail()
    out, _ = process.communicate(timeout=300)
    assert process.returncode == code  # that of the first, not the 75 of the other
    assert lines_of(out, 0) == ["[0] up", "[0] told 1", "[0] saved"] and lines_of(out, 1) == ["[1] up"]


def test_local_kills_who_does_not_stop(job):
    process = job(FAILURE="3", STUBBORN="0", GRACE="1")
    job.fail()
    begin = time.monotonic()
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 3 and lines_of(out, 0) == ["[0] up"] and time.monotonic() - begin > 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_local_passes_a_signal_on_once_and_waits_for_the_saving(job, number):
    process = job()
    process.send_signal(number)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 75
    for k in (0, 1):
        assert lines_of(out, k) == [f"[{k}] up", f"[{k}] told 1", f"[{k}] saved"]


def test_local_leaves_those_alone_who_stop_by_themselves(job):
    process = job(FAILURE="75", GRACE="1")
    job.fail()
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 75 and lines_of(out, 0) == ["[0] up"]


def test_local_ends_well_when_all_do(shell):
    code, out, err = shell("launch/local", "3", "--", "bash", "-c", 'echo "$@"; printf "no end"; echo "error" >&2', "x")
    assert (code, err) == (0, "")
    for k in range(3):
        said = lines_of(out, k)
        assert said[0] == f"[{k}] --coordinator=127.0.0.1:12411 --num_processes=3 --process_id={k}" and len(said) == 2


def test_local_says_that_its_port_is_taken(shell):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, out, err = shell("launch/local", "2", "--", "ls", PORT=str(port))
    assert (code, out) == (2, "") and err.startswith(f"launch/local: port {port} of this machine is in use")


# -- tpu


def no_sleep(shell):
    (shell.bin / "sleep").write_text("#!/bin/sh\n")
    (shell.bin / "sleep").chmod(0o755)


def test_tpu_waits_until_the_pod_is_there(shell):
    no_sleep(shell)
    _, out, _ = shell("launch/tpu", "create", "pod")
    assert [line.split(" ")[1:] for line in out.splitlines()] == [["pod:", "WAITING_FOR_RESOURCES"], ["pod:", "ACTIVE"]]
    create, *asked = [record[:-4] for record in shell.records()]
    assert create[0] == "gcloud" and {"create", "pod", "--accelerator-type=v6e-16", "--spot"} < set(create)
    assert len(asked) == 2 and all({"describe", "pod"} < set(words) for words in asked)
    zone = {word for word in create if word.startswith("--zone=")}
    assert zone and all(zone <= set(words) for words in asked)
    (shell.bin / "gcloud").write_text("#!/bin/sh\necho FAILED\n")
    assert shell("launch/tpu", "create", "pod")[0] == 1
    (shell.bin / "gcloud").write_text("#!/bin/sh\nexit 4\n")
    assert shell("launch/tpu", "create", "pod")[0] == 4


HOST = r"""#!/usr/bin/env bash
cd "$HOST"
for word in "$@"; do
    case $word in --command=*) exec env -i PATH=/usr/bin:/bin bash -c "${word#--command=}" ;; esac
done
"""


def test_tpu_runs_detached_once_and_stops_after_saving(shell, tmp_path):
    (shell.bin / "gcloud").write_text(HOST)
    (shell.bin / "tail").unlink()
    host = tmp_path / "host"
    (host / "noisesched" / ".venv" / "bin").mkdir(parents=True)
    program = host / "noisesched" / ".venv" / "bin" / "noisesched"
    program.write_text(
        '#!/bin/bash\ntrap "sleep 0.2; echo saved; exit 75" TERM\nprintf "<%s>" "$@"; echo\nwhile :; do /bin/sleep 0.02; done\n'
    )
    program.chmod(0o755)
    log, pid_file = host / "noisesched" / "run.log", host / "noisesched" / "run.pid"
    assert shell("launch/tpu", "run", "pod", "--", "noisesched", *AWKWARD, HOST=str(host)) == (0, "", "")
    pid = int(pid_file.read_text())
    try:
        while not log.read_text().endswith("\n"):
            time.sleep(0.01)
        assert log.read_text() == "".join(f"<{word}>" for word in AWKWARD) + "\n"
        assert os.getsid(pid) == pid  # no terminal, no connection takes it down
        code, _, err = shell("launch/tpu", "run", "pod", "--", "noisesched", HOST=str(host))
        assert (code, err) == (1, "a run is already going on here\n") and int(pid_file.read_text()) == pid
        code, out, _ = shell("launch/tpu", "stop", "pod", HOST=str(host))
        assert code == 0 and out.endswith("saved\n")
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    finally:
        if b"noisesched" in (open(f"/proc/{pid}/cmdline", "rb").read() if os.path.exists(f"/proc/{pid}") else b""):
            os.kill(pid, signal.SIGKILL)
    code, out, _ = shell("launch/tpu", "follow", "pod", HOST=str(host))
    assert code == 0 and out == log.read_text()


# -- gke


def manifest(shell, *command, **variables):
    code, out, err = shell("launch/gke", "manifest", "digits", "--", *command, **variables)
    assert (code, err) == (0, "")
    return yaml.safe_load(out)


def pod_of(jobset):
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    return workers["name"], job, job["template"]["spec"]


def as_kubernetes_expands(word, environment):
    return re.sub(r"\$(\$|\((\w+)\))", lambda m: "$" if m[1] == "$" else environment.get(m[2], m[0]), word)


def test_gke_applies_the_manifest_it_prints(shell):
    assert shell("launch/gke", "run", "digits", "--", *TRAIN)[0] == 0
    ((*words, given, _, _, _),) = shell.records()
    assert words[:2] == ["kubectl", "apply"] and yaml.safe_load(given) == manifest(shell, *TRAIN)
    assert shell("launch/gke", "stop", "digits")[0] == 0
    ((*words, _, _, _, _),) = shell.records()
    assert words[:4] == ["kubectl", "delete", "jobset", "digits"]


def test_gke_on_tpus(shell):
    jobset = manifest(shell, "noisesched", *AWKWARD, TOPOLOGY="2x2x4")
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["annotations"] == {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    assert jobset["spec"]["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
    _, job, pod = pod_of(jobset)
    assert (job["completionMode"], job["parallelism"], job["completions"], job["backoffLimit"]) == ("Indexed", 4, 4, 0)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-spot": "true",
        "cloud.google.com/gke-tpu-topology": "2x2x4",
    }
    (container,) = pod["containers"]
    assert container["image"] == "registry/noisesched" and container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert [as_kubernetes_expands(word, {"HOME": "/x"}) for word in container["command"]] == ["noisesched", *AWKWARD]


def test_gke_on_gpus_says_who_is_who(shell):
    jobset = manifest(shell, *TRAIN, ACCELERATOR="nvidia-l4", CHIPS="2", HOSTS="3", SPOT="0")
    name, job, pod = pod_of(jobset)
    assert (job["parallelism"], job["completions"]) == (3, 3)
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 2}}
    words = [as_kubernetes_expands(word, {"JOB_COMPLETION_INDEX": "2"}) for word in container["command"]]
    first = f"{jobset['metadata']['name']}-{name}-0-0.{jobset['metadata']['name']}"  # as JobSet names its hosts
    assert words == [*TRAIN, f"--coordinator={first}:12411", "--num_processes=3", "--process_id=2", "--wait=1800"]


def test_gke_starts_again_after_75_and_after_a_preemption(shell):
    jobset = manifest(shell, *TRAIN, RESTARTS="7")
    _, job, pod = pod_of(jobset)
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    assert policy["rules"] == [{"action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}]
    assert pod["restartPolicy"] == "Never"  # or Kubernetes takes no podFailurePolicy
    stopped, taken = job["podFailurePolicy"]["rules"]
    assert stopped == {
        "action": "FailJob",
        "onExitCodes": {"containerName": pod["containers"][0]["name"], "operator": "In", "values": [75]},
    }
    assert taken == {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


# -- slurm


def batch_script(shell, *command, **variables):
    """What sbatch is given to read."""
    code, _, err = shell("launch/slurm", "run", "--partition=gpu", "--", *command, **variables)
    assert (code, err) == (0, "")
    ((*words, script, _, _, _),) = shell.records()
    assert words[0] == "sbatch" and "--partition=gpu" in words
    return script


def test_slurm_asks_for_a_process_for_each_gpu_and_a_warning_before_the_end(shell):
    asked = lambda script: dict(
        line[len("#SBATCH --") :].split("=") for line in script.split("\n") if "#SBATCH" in line and "=" in line
    )
    script = batch_script(shell, *TRAIN, "a b", NODES="3", GPUS="5", VENV="/shared/environment")
    wanted = {"nodes": "3", "ntasks-per-node": "5", "gpus-per-node": "5", "signal": "TERM@60", "open-mode": "append"}
    assert wanted.items() <= asked(script).items() and "#SBATCH --requeue\n" in script
    assert "export PATH=/shared/environment/bin:$PATH\n" in script
    script = batch_script(shell, *TRAIN, GPUS="0")  # some clusters refuse to be asked for no GPU
    assert "gpu" not in script and asked(script)["ntasks-per-node"] == "1"


@pytest.mark.parametrize("ended", [0, 1, 75])
def test_slurm_queues_again_after_75_alone(shell, ended):
    script = batch_script(shell, "noisesched", *AWKWARD)
    code, _, err = shell("bash", "-c", script, SLURM_JOB_ID="17", SRUN_CODE=str(ended))
    assert (code, err) == (ended, "")
    srun, *more = [record[:-4] for record in shell.records()]
    assert srun[0] == "srun" and srun[-len(AWKWARD) - 1 :] == ["noisesched", *AWKWARD]
    assert more == ([["scontrol", "requeue", "17"]] if ended == 75 else [])


def test_slurm_script_waits_for_the_processes_when_told_itself(shell):
    (shell.bin / "srun").write_text('#!/bin/bash\necho up\nkill -TERM "$PPID"\n/bin/sleep 0.2\nexit 75\n')
    code, _, _ = shell("bash", "-c", batch_script(shell, *TRAIN), SLURM_JOB_ID="17")
    assert code == 75 and [record[:-4] for record in shell.records()] == [["scontrol", "requeue", "17"]]


def test_slurm_ends_for_good(shell):
    assert shell("launch/slurm", "stop", "17")[0] == 0
    update, cancel = [record[:-4] for record in shell.records()]  # or it would queue again
    assert update[:3] == ["scontrol", "update", "JobId=17"] and "Requeue=0" in update and cancel == ["scancel", "17"]
