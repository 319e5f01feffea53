"""Two ways to run the programs: each as a process, and many command lines in one process."""

import glob
import os
import resource
import select
import signal
import subprocess
import time
from dataclasses import dataclass

#: Seconds that a refused file may take, of a core.
MAX_SECONDS = 10
#: Seconds on the clock in which nothing of a run computes or waits for a core: it waits for what does not come.
MAX_WAIT = 60
#: Bytes of memory that it may take.
MAX_BYTES = 500 << 20
#: What no process gets, so that a run that asks for more fails, and the machine does not.
DATA_LIMIT = 4 << 30


@dataclass
class Ended:
    """How a command line ended: an exit code, or in words why there is none."""

    code: int | None
    how: str
    stdout: bytes
    stderr: bytes
    seconds: float
    peak_bytes: int


def limit():
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_LIMIT, DATA_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def family(pid):
    """A process and those that it started."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as children:
            below = [int(child) for child in children.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        below = []
    return [pid, *(p for child in below for p in family(child))]


def computed(pid):
    """Seconds of a core that a process and its family have used."""
    total = 0
    for member in family(pid):
        try:
            with open(f"/proc/{member}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            total += sum(int(fields[at]) for at in (11, 12, 13, 14))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return total / os.sysconf("SC_CLK_TCK")


class Sleep:
    """Tells a run that is asleep from one that waits for a core, of which a busy machine gives it few."""

    def __init__(self, pid):
        self.pid, self.last, self.since = pid, None, time.monotonic()

    def is_too_long(self):
        """To be asked again and again."""
        turns = 0
        for member in family(self.pid):
            for task in glob.glob(f"/proc/{member}/task/*"):
                try:
                    with open(f"{task}/stat") as stat, open(f"{task}/schedstat") as schedstat:
                        runnable = stat.read().rsplit(")", 1)[1].split()[0] in "RD"
                        turns += int(schedstat.read().split()[2]) + runnable * time.monotonic_ns()
                except (FileNotFoundError, ProcessLookupError):
                    pass
        if turns != self.last:
            self.last, self.since = turns, time.monotonic()
        return time.monotonic() - self.since > MAX_WAIT


def peak(pid):
    """Most bytes that a process, or one of those that it started and that are still there, had resident."""
    most = 0
    for member in family(pid):
        try:
            with open(f"/proc/{member}/status") as status:
                text = status.read()
            at = text.find("VmHWM:")
            most = max(most, int(text[at + 6 :].split()[0]) << 10) if at >= 0 else most
        except (FileNotFoundError, ProcessLookupError):
            pass
    return most


def kill(pid):
    for member in reversed(family(pid)):
        try:
            os.kill(member, signal.SIGKILL)
        except ProcessLookupError:
            pass


class Programs:
    """Each command line as a process of its own."""

    name = "programs"

    def __init__(self, folder, scratch):
        self.folder, self.scratch, self.seconds = folder, scratch, 0.0
        self.env = {**os.environ, "RUST_BACKTRACE": "0", "COLUMNS": "100", "RAYON_NUM_THREADS": "1"}

    def run(self, words):
        begun = time.monotonic()
        out, err = self.scratch / "stdout", self.scratch / "stderr"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [str(self.folder / words[0]), *words[1:]], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=self.env, preexec_fn=limit
            )
            how, pid, pause = "", process.pid, 0.001
            sleep = Sleep(pid)
            while True:
                ended, status, usage = os.wait4(pid, os.WNOHANG)
                if ended:
                    break
                clock = time.monotonic() - begun
                if clock > MAX_SECONDS and not how and (sleep.is_too_long() or computed(pid) > MAX_SECONDS):
                    how = "hang"
                    kill(pid)
                time.sleep(pause)
                pause = min(0.02, pause * 1.3)
        process.returncode = 0
        if os.WIFSIGNALED(status):
            code, how = None, how or f"signal {os.WTERMSIG(status)}"
        else:
            code = os.WEXITSTATUS(status)
        seconds = usage.ru_utime + usage.ru_stime
        self.seconds += seconds
        return Ended(code, how, out.read_bytes(), err.read_bytes(), seconds, usage.ru_maxrss << 10)

    def close(self):
        pass


class Harness:
    """All command lines in one process, the one of fuzz/, which is started again when it is gone."""

    name = "harness"
    #: Command lines after which the process is started again, so that what one leaves behind is not another's fault.
    MAX_RUNS = 3000

    def __init__(self, folder, scratch):
        self.program, self.scratch, self.process = folder / "remit-fuzz", scratch, None
        #: Of a core, by processes that were closed.
        self.seconds = 0.0
        self.env = {**os.environ, "RUST_BACKTRACE": "0", "COLUMNS": "100", "RAYON_NUM_THREADS": "1"}

    def start(self):
        err = (self.scratch / "harness-stderr").open("ab")
        self.process = subprocess.Popen(
            [str(self.program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, env=self.env, preexec_fn=limit, bufsize=0
        )
        err.close()
        self.runs = 0

    def run(self, words):
        if self.process is None or self.runs >= self.MAX_RUNS:
            self.close()
            self.start()
        self.runs += 1
        err = self.scratch / "harness-stderr"
        os.truncate(err, 0)
        # What the kernel has counted is looked up where it may matter: that takes as long as a small file.
        pid, begun, before = self.process.pid, time.monotonic(), None
        said, code, how, sleep = b"", None, "", Sleep(self.process.pid)
        try:
            self.process.stdin.write("\x1f".join(words).encode() + b"\x1e")
        except BrokenPipeError:
            pass
        out = self.process.stdout.fileno()
        while True:
            ready, _, _ = select.select([out], [], [], 1)
            if ready:
                block = os.read(out, 1 << 16)
                said += block
                if not block:
                    break
                at = said.rfind(b"\n\x1e")
                if at >= 0 and said.endswith(b"\n") and said[at + 2 : -1].count(b" ") == 1:
                    code = int(said[at + 2 :].split()[0])
                    said = said[:at]
                    break
            clock = time.monotonic() - begun
            if clock > 1 and before is None:
                before = computed(pid)
            if clock > MAX_SECONDS and (sleep.is_too_long() or computed(pid) - before > MAX_SECONDS):
                how = "hang"
                break
        seconds = 0 if before is None else computed(pid) - before
        most = peak(pid) if self.runs % 8 == 0 or code != 0 else 0
        stderr = err.read_bytes()
        if code is None:
            kill(pid)
            status = self.process.wait()
            how = how or (f"signal {-status}" if status < 0 else f"the harness ended with {status}")
            self.process = None
        elif most > MAX_BYTES:
            self.close()
        return Ended(code, how, said, stderr, seconds, most)

    def close(self):
        if self.process is not None:
            self.seconds += computed(self.process.pid)
            kill(self.process.pid)
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None
