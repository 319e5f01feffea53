"""What all steps share: folders and sizes, processes that end with their step's time, and what they print."""

import csv
import glob
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
MB, GB = 1e6, 1e9


class Failed(Exception):
    """A step can't go on; the text says why."""


class Lacking(Exception):
    """A step needs what an earlier one did not find."""


class Skipped(Exception):
    """The machine lacks a tool that a step is of no use without."""


class OutOfTime(Exception):
    """The time of a step is used up."""


def library_folders():
    """Where CUDA's libraries are besides the system's own places: PyTorch's wheels bring them, or a toolkit."""
    patterns = [f"{path}/nvidia/*/lib" for path in sys.path] + ["/usr/local/cuda*/lib64", "/usr/local/cuda*/targets/*/lib"]
    folders = [folder for pattern in patterns for folder in sorted(glob.glob(pattern))]
    wanted = ("libcublas", "libcurand", "libcudart", "libnvrtc")
    return [folder for folder in folders if any(glob.glob(f"{folder}/{name}*.so*") for name in wanted)]


def binaries_folder(emulated):
    """REMIT_BIN, or bin/ of a pack, or what the build leaves."""
    built = sorted(ROOT.glob("target/cuda/*/release"))
    places = [os.environ.get("REMIT_BIN"), ROOT / "bin", *([] if emulated else built), ROOT / "target" / "release"]
    for place in filter(None, places):
        if (Path(place) / "remit-score").exists():
            return Path(place).resolve()
    sys.exit("gpu.sh: there is no remit-score; build it, or let REMIT_BIN name its folder")


class PeakMemory:
    """The most memory of the GPU that was in use above what was at the start, in bytes, as nvidia-smi samples it."""

    def __enter__(self):
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        command = ["nvidia-smi", f"--id={gpu}", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--loop-ms=50"]
        self.samples = []
        try:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except FileNotFoundError as error:
            raise Failed("there is no nvidia-smi to measure memory with") from error
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()
        for _ in range(100):  # the first sample is that of an idle GPU
            if self.samples:
                break
            time.sleep(0.05)
        return self

    def read(self):
        for line in self.process.stdout:
            if line.strip().isdigit():
                self.samples.append(int(line) * 2**20)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.thread.join(timeout=5)

    @property
    def bytes(self):
        if len(self.samples) < 2:
            raise Failed("nvidia-smi gave no samples of memory")
        return max(self.samples) - self.samples[0]


class Worker:
    """The process of theirs.py, which takes a task a line and answers each with a line."""

    def __init__(self, environment, log):
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, HERE / "theirs.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.answers = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put(None)

    def ask(self, task, settings, deadline):
        started = time.monotonic()
        try:
            self.process.stdin.write(json.dumps({"task": task, "settings": settings}, default=str) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Failed(f"theirs.py ended before {task}: gpu.log says why") from None
        left = max(0.0, deadline - started)
        try:
            line = self.answers.get(timeout=min(left, threading.TIMEOUT_MAX))
        except queue.Empty:
            raise OutOfTime from None
        if line is None:
            raise Failed(f"theirs.py ended in {task}: gpu.log says why")
        self.log.write(f"theirs.py {task}: {time.monotonic() - started:.1f} s\n{line[:2000]}\n")
        self.log.flush()
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(f"{task}: {answer['error']}")
        return answer["result"]

    def alive(self):
        return self.process.poll() is None

    def end(self):
        if self.alive():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Bench:
    """The scratch folder, the sizes of what is run, and the time that the current step has left."""

    def __init__(self, folder, log, emulated, sizes):
        self.folder, self.emulated, self.sizes = folder, emulated, sizes
        self.device = "cuda-emulated" if emulated else "cuda:0"
        self.torch_device = "cpu" if emulated else "cuda:0"
        self.binaries = binaries_folder(emulated)
        self.log = log
        self.deadline = float("inf")
        self.worker = None
        self.facts = {}  # what later steps need of earlier ones, by name
        known = os.environ.get("LD_LIBRARY_PATH")
        folders = [] if emulated else library_folders()
        self.environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.remit_environment = {**self.environment, "LD_LIBRARY_PATH": ":".join([*([known] if known else []), *folders])}

    def fact(self, name):
        if name not in self.facts:
            raise Lacking(f"an earlier step did not find the {name}")
        return self.facts[name]

    def run(self, command, environment=None):
        """What a command writes to stdout. It is ended with its children when the step's time is over."""
        command = list(map(str, command))
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise OutOfTime
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment or self.environment,
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(timeout=min(left, threading.TIMEOUT_MAX))
        except subprocess.TimeoutExpired:
            raise OutOfTime from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
            code = process.returncode
            self.log.write(f"$ {' '.join(command)}\n# exit code {code}, {time.monotonic() - started:.1f} s\n")
        self.log.write(f"{output[-4000:]}{errors[-4000:]}\n")
        self.log.flush()
        if code != 0:
            lines = [line for line in errors.splitlines() if line.strip()] or ["nothing on stderr"]
            said = next((line for line in lines if line.startswith("error")), lines[-1])
            raise Failed(f"{Path(command[0]).name} exited with {code}: {said[:200]}")
        return output

    def remit(self, name, *arguments):
        return self.run([self.binaries / name, *arguments], self.remit_environment)

    def theirs(self, task, **settings):
        """A task of theirs.py. Its process starts with the first and serves all, since PyTorch takes long to load."""
        if self.worker is None:
            self.worker = Worker(self.environment, self.log)
        try:
            return self.worker.ask(task, settings, self.deadline)
        except Failed:
            if not self.worker.alive():
                self.close()
            raise
        except OutOfTime:
            self.close()  # it is still at the task
            raise

    def close(self):
        """Ends the process of theirs.py."""
        if self.worker is not None:
            self.worker.end()
            self.worker = None

    def rows(self, name, lengths, seed):
        """A corpus of random ids, one row of each length: its file."""
        generator = random.Random(seed)
        path = self.folder / f"{name}.jsonl"
        with open(path, "w") as out:
            for length in lengths:
                print(json.dumps({"input_ids": [generator.randrange(1, 1000) for _ in range(length)]}), file=out)
        return path

    def score(self, rows, output, model, *more, device=None, dtype="f32", batch_tokens=16384, seq_len=4096):
        """Scores rows into a folder of the scratch folder: (the folder, the report)."""
        output = self.folder / output
        shutil.rmtree(output, ignore_errors=True)
        report = self.remit(
            "remit-score", rows, "-o", output, "--rl-model", model, "--device", device or self.device, "--dtype", dtype,
            "--batch-tokens", batch_tokens, "--seq-len", seq_len, "--bos", "never", "--eos", "never",
            "--part-bytes", 1 << 26, "--json", *more,
        )  # fmt: skip
        return output, json.loads(report)

    def log_probs(self, scored, column="rl_logprob"):
        """The column of a set as text, by the number of the row's document. The text has all digits of an f32."""
        path = scored.with_suffix(".csv")
        path.unlink(missing_ok=True)
        self.remit("remit-inspect", "export", "--tokens", path, scored)
        found = {}
        with open(path, newline="") as lines:
            for line in csv.DictReader(lines):
                found.setdefault(int(line["doc_index"]), []).append(line[column])
        return {document: values[1:] for document, values in found.items()}  # a row's first token has none

    def anneal(self, scored, output, model, *more, device=None, dtype="f32"):
        """Trains on a set: (the output folder, the lines of its metrics)."""
        output = self.folder / output
        shutil.rmtree(output, ignore_errors=True)
        self.remit(
            "remit-anneal", "--weights", scored, "--model", model, "-o", output, "--keep-special-tokens",
            "--device", device or self.device, "--dtype", dtype, *more,
        )  # fmt: skip
        return output, [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def differences(found, expected):
    """|a - b| of all values of two columns by row. Columns have to be of the same rows."""
    if {row: len(values) for row, values in found.items()} != {row: len(values) for row, values in expected.items()}:
        raise Failed("the two sides have not the same rows")
    return [abs(float(a) - float(b)) for row in found for a, b in zip(found[row], expected[row])]


def worst(values):
    """The largest; NaN where one is NaN, and where there is none: NaN is below no limit."""
    values = list(values)
    return float("nan") if not values or any(value != value for value in values) else max(values)
