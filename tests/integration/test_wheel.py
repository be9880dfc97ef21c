"""The wheel works where the checkout is not: built, unpacked alone, and used by another process."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml
from conftest import tiny_model

ROOT = Path(__file__).parents[2]
# -S leaves out the .pth files of the environment, and with them the editable checkout.
PROGRAM = """
import sys
sys.path[:0] = {paths!r}
import hf_spectral_prune
assert hf_spectral_prune.__file__.startswith({paths[0]!r}), hf_spectral_prune.__file__
from hf_spectral_prune.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """A folder with the contents of a freshly built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    # Elsewhere than in the checkout, whose `build` folder would be taken for the program.
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder / "site"), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    return folder / "site"


def cria(unpacked: Path, words: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(paths=[str(unpacked), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    return subprocess.run([sys.executable, "-S", "-c", program, *words], cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_wheel_prunes_and_writes_card_report_and_modelling_code(unpacked: Path, tokenizer, tmp_path: Path):
    tiny_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    # The folder is checked by other tests: the process that does it would see the checkout here.
    options = {"model_name_or_path": "model", "output_dir": "out", "calibration": "self", "num_calibration_samples": 8}
    options |= {"max_seq_length": 16, "layout": "per_layer", "target_scope": "prunable", "target_reduction": 0.3}
    options |= {"round_to": 1, "min_ffn_units": 1, "self_check": False}
    done = cria(unpacked, ["prune", *(word for name, value in options.items() for word in (f"--{name}", str(value)))], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "README.md", "report.html", "cria_llama.py", "narrowing.py"} <= files


def test_citation_names_the_version_of_the_package():
    import hf_spectral_prune

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == hf_spectral_prune.__version__
    assert f'version = "{cited["version"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
