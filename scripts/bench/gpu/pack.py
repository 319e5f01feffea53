"""Packs what a GPU machine without Rust and without a network needs: the commands, these scripts, the tiny models.

It is an archive that Python's own tarfile unpacks, for the machine may have neither zstd nor xz.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from bench import ROOT, binaries_folder

LIMIT = 60 * 2**20
PROGRAMS = ("remit-score", "remit-anneal", "remit-inspect", "remit-kernel-tests")
# Higher ones take several times as long and save a tenth.
PRESET = 4


def contents():
    """Files besides the commands, in the places that they have in the repository."""
    yield ROOT / "scripts" / "bench" / "gpu.sh"
    yield from sorted((ROOT / "scripts" / "bench" / "gpu").glob("*.py"))
    for model in sorted((ROOT / "fixtures" / "models").glob("tiny-*")):
        if not model.name.endswith("-base"):
            yield from sorted(model.iterdir())


def pack(file):
    binaries = binaries_folder(emulated=False)
    version = subprocess.run([binaries / "remit-score", "--version"], capture_output=True, text=True, check=True).stdout
    print(f"{binaries}: {', '.join(version.splitlines())}")
    if "+cuda" not in version.split():
        print("gpu.sh: these were built without CUDA; scripts/build-cuda.sh builds them with it", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="remit-pack-") as folder:
        with tarfile.open(file, "w:xz", preset=PRESET) as archive:
            for name in PROGRAMS:
                if not (binaries / name).exists():
                    print(f"gpu.sh: {binaries} has no {name}, which the pack then lacks", file=sys.stderr)
                    continue
                stripped = Path(folder) / name
                shutil.copyfile(binaries / name, stripped)
                subprocess.run(["strip", stripped], check=True)
                stripped.chmod(0o755)
                archive.add(stripped, f"bin/{name}")
            for path in contents():
                archive.add(path, path.relative_to(ROOT))
    size = file.stat().st_size
    print(f"{file}: {size / 2**20:.1f} MiB of at most {LIMIT / 2**20:.0f}")
    if size > LIMIT:
        sys.exit(f"gpu.sh: {file} is too large to carry")
