"""The wheel, installed where there is no checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def call(*arguments: str | Path, cwd: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run(arguments, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return next(out.glob("alloop-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment that holds alloop from the wheel and sees our other packages."""
    folder = tmp_path_factory.mktemp("fresh")
    uv = shutil.which("uv")  # an environment that uv made has no pip, and its Python may come without ensurepip
    venv.create(folder / "venv", with_pip=uv is None, symlinks=True)
    there = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    site = Path(sysconfig.get_path("purelib", vars=there))
    install = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    python = folder / "venv" / "bin" / "python"
    if uv is None:
        call(python, "-m", "pip", *install, wheel, cwd=folder)
    else:
        call(uv, "pip", "install", "--quiet", "--python", python, "--no-deps", "--no-index", wheel, cwd=folder)
    # Only the folder, not its .pth files: the checkout's editable install must stay out of sight.
    packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "test_environment.pth").write_text("\n".join(sorted(packages)) + "\n")
    return folder / "venv" / "bin"


def test_the_wheel_holds_the_migrations_and_the_type_marker(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())

    assert "alloop/py.typed" in names
    wanted = {f"alloop/store/migrations/versions/{path.name}" for path in (ROOT / "migrations/versions").glob("*.py")}
    assert wanted
    assert wanted | {"alloop/store/migrations/env.py", "alloop/store/migrations/script.py.mako"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_an_installed_alloop_makes_and_keeps_a_workspace_without_the_checkout(installed: Path, tmp_path: Path):
    where = call(installed / "python", "-c", "import alloop; print(alloop.__file__)", cwd=tmp_path)
    assert where.startswith(str(installed.parent))

    made = call(installed / "alloop", "init", "pets", "--classes", "cat,dog", cwd=tmp_path)
    assert "Made pets" in made
    assert "already" in call(installed / "alloop", "db", "upgrade", "-C", "pets", cwd=tmp_path)
    for path in (tmp_path / "pets").glob("alloop.db*"):
        path.unlink()
    assert "from schema none to" in call(installed / "alloop", "db", "upgrade", "-C", "pets", cwd=tmp_path)
    assert "is intact" in call(installed / "alloop", "db", "check", "-C", "pets", cwd=tmp_path)
    assert "Copied to" in call(installed / "alloop", "db", "backup", "copy.db", "-C", "pets", cwd=tmp_path)
    assert (tmp_path / "copy.db").exists()
    assert "0 images" in call(installed / "python", "-m", "alloop", "status", "-C", "pets", cwd=tmp_path)
