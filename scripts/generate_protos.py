"""Generates the Python package `campaign` from `protos/`; with `--check`, says whether the committed one is current.

The proto path is the Python import path, so that nothing generated is ever rewritten. The package is replaced whole:
what a removed proto left behind goes with it.
"""

import filecmp
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGE = ROOT / "services" / "campaign"
BIN = Path(sys.executable).parent


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        generated = generate(Path(folder))
        if "--check" in sys.argv[1:]:
            stale = differences(generated, PACKAGE)
            for path in stale:
                print(f"not what protos/ generates: {PACKAGE.relative_to(ROOT) / path}")
            if stale:
                print("run `make protos` and commit the result", file=sys.stderr)
            return bool(stale)
        shutil.rmtree(PACKAGE, ignore_errors=True)
        shutil.copytree(generated, PACKAGE)
    return 0


def generate(folder: Path) -> Path:
    """Generates into `folder` and returns the package's root there."""
    protos = sorted(PROTOS.rglob("*.proto"))
    protoc(protos, f"--python_out={folder}", f"--mypy_out=quiet:{folder}")
    # A proto without a service would get a module with nothing in it.
    with_service = [path for path in protos if re.search(r"^service ", path.read_text("utf-8"), re.MULTILINE)]
    protoc(with_service, f"--grpc_python_out={folder}", f"--mypy_grpc_out=quiet,only_async:{folder}")
    package = folder / PACKAGE.name
    for directory in (package, *(path for path in package.rglob("*") if path.is_dir())):
        (directory / "__init__.py").touch()
    (package / "py.typed").touch()
    return package


def protoc(protos: list[Path], *outputs: str) -> None:
    """Runs the protoc of grpcio-tools; raises CalledProcessError if it refuses a proto."""
    plugins = [f"--plugin={BIN / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *plugins, *outputs, *map(str, protos)]
    subprocess.run(command, check=True)


def differences(generated: Path, committed: Path) -> list[Path]:
    """Files that are in only one of the two folders, or not the same in both."""
    names = {
        path.relative_to(root)
        for root in (generated, committed)
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    _, changed, missing = filecmp.cmpfiles(generated, committed, sorted(map(str, names)), shallow=False)
    return sorted(map(Path, (*changed, *missing)))


if __name__ == "__main__":
    sys.exit(main())
