"""The layout of the project: links, packages, laziness, and what the wheel holds."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import kinema
from kinema.weights import EMBEDDED, embedded_dir

ROOT = Path(__file__).parent.parent
AREAS = ("tokenizers", "generation", "training", "eval", "apps")


def run_python(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("area", AREAS)
def test_area_is_a_relative_link_to_the_folder_at_the_root(area: str):
    link = ROOT / "src" / "kinema" / area
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == (ROOT / area).resolve()
    assert (ROOT / area).is_dir()


@pytest.mark.parametrize("area", AREAS)
def test_area_has_no_init_and_its_packages_have_one(area: str):
    assert not (ROOT / area / "__init__.py").exists()
    for folder in (ROOT / area).rglob("*"):
        if folder.is_dir() and folder.name != "__pycache__" and any(folder.glob("*.py")):
            assert (folder / "__init__.py").exists(), folder


def test_no_area_shadows_an_installed_package_at_the_root():
    # In the repository's root, `tokenizers` must still be the Hugging Face package.
    result = run_python("from transformers import AutoTokenizer; import tokenizers; print(tokenizers.__file__)")
    assert result.returncode == 0, result.stderr
    assert "site-packages" in result.stdout


def test_public_names_are_lazy():
    code = """
import sys, kinema
assert "torch" not in sys.modules
assert kinema.__version__
assert set(dir(kinema)) >= {"CausalVideoTokenizer", "VideoTransformer", "KinemaPipeline", "__version__"}
assert "torch" not in sys.modules
assert kinema.CausalVideoTokenizer.__name__ == "CausalVideoTokenizer"
assert "torch" in sys.modules
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["CausalVideoTokenizer", "VideoTransformer", "KinemaPipeline"])
def test_public_name_resolves_to_the_class_of_that_name(name: str):
    assert getattr(kinema, name).__name__ == name


def test_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = kinema.Nonsense  # pyright: ignore[reportAttributeAccessIssue]


def test_files_are_short_and_have_docstrings():
    for area in AREAS:
        for file in (ROOT / area).rglob("*.py"):
            text = file.read_text()
            assert text.count("\n") < 430, file
            assert not text.strip() or text.startswith('"""'), file


def test_nobody_unpickles():
    forbidden = (
        *("pickle.load", "import pickle", "from pickle", "allow_pickle=True", "weights_only=False"),
        *("eval(compile", "trust_remote_code=True", "use_safetensors=False"),
    )
    restricted = ROOT / "eval/weights/formats.py"  # has unpicklers that know a few names; the tests beside show that
    files = {file for area in (*AREAS, "benchmarks") for file in (ROOT / area).rglob("*.py")}
    for file in (files | {*(ROOT / "src/kinema").glob("*.py"), *(ROOT / "src/kinema/video").glob("*.py")}) - {
        restricted
    }:
        text = file.read_text().replace("from pickle import UnpicklingError\n", "")  # what torch's own raises
        assert not any(word in text for word in forbidden), file
        # torch's own restricted unpickler knows tensors alone.
        assert text.count("torch.load(") == len(re.findall(r"torch\.load\([^()]*weights_only=True", text)), file
    text = restricted.read_text()
    assert not any(word in text for word in ("pickle.load", "pickle.Unpickler(", "weights_only=False", "allow_pickle"))
    assert text.count("torch.load(") == text.count("weights_only=True") == 1


def test_wheel_holds_real_files(tmp_path: Path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([*command, "-w", str(tmp_path), str(ROOT)], check=True, capture_output=True, env=environment)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        assert archive.read("kinema/apps/cli.py") == (ROOT / "apps" / "cli.py").read_bytes()
    for area in AREAS:
        wanted = {f"kinema/{file.relative_to(ROOT).as_posix()}" for file in (ROOT / area).rglob("*.py")}
        assert wanted <= set(entries)
    assert "kinema/py.typed" in entries
    assert "kinema/apps/assets/first_frame.png" in entries
    assert "kinema/eval/report/page.html.j2" in entries
    # A link in a zip archive has S_IFLNK in the upper bits of its attributes.
    assert not [name for name, info in entries.items() if (info.external_attr >> 28) == 0xA]
    assert not [name for name in entries if not name.startswith(("kinema/", "kinema-"))]
    shipped = {f"kinema/weights/{path.relative_to(ROOT / 'src/kinema/weights').as_posix()}"
               for path in (ROOT / "src/kinema/weights").rglob("*") if path.is_file()}  # fmt: skip
    assert shipped <= set(entries)
    assert sum(entries[name].file_size for name in shipped) <= 60e6
    _runs_outside_the_checkout(wheel, tmp_path / "elsewhere")


def _runs_outside_the_checkout(wheel: Path, folder: Path) -> None:
    """Installed into an empty folder, with the packages it needs, the program makes a clip of the embedded model."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    code = """
import kinema, kinema.apps.cli, pathlib, sys
assert pathlib.Path(kinema.__file__).is_relative_to(sys.argv[1]), kinema.__file__
assert pathlib.Path(kinema.apps.cli.__file__).is_relative_to(sys.argv[1]), kinema.apps.cli.__file__
sys.exit(kinema.apps.cli.main(["generate", "a red car", "--num-frames", "1", "--num-steps", "1", "-o", "clip.mp4"]))
"""
    environment = os.environ | {"PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert (folder / "clip.mp4").stat().st_size > 0


def test_pages_that_are_named_exist():
    """Paths of docs in the code, and links between pages."""
    sources = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "Makefile"]
    for area in (*AREAS, "benchmarks", "scripts", "src"):
        sources += [path for path in (ROOT / area).rglob("*.py") if not path.is_symlink()]
    named = 0
    for source in sources:
        text = source.read_text(encoding="utf-8")
        for name in re.findall(r"\bdocs/[a-z_]+\.md\b", text):
            assert (ROOT / name).is_file(), f"{source}: {name}"
            named += 1
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) if source.suffix == ".md" else ():
            assert (source.parent / link).exists(), f"{source}: {link}"
            named += 1
    assert named > 20


def test_readme_shows_the_prompts_of_the_demo():
    from kinema.apps.demo import FIRST_FRAME_PROMPT, PROMPTS

    text = (ROOT / "README.md").read_text()
    assert len(PROMPTS) == 4
    for prompt in (*PROMPTS, FIRST_FRAME_PROMPT):
        assert prompt in text


def test_version_is_the_same_everywhere():
    assert f'version: "{kinema.__version__}"' in (ROOT / "CITATION.cff").read_text()
    assert f"## {kinema.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def embedded_files() -> list[Path]:
    return [file for name in EMBEDDED for file in embedded_dir(name).rglob("*") if file.is_file()]


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_model_has_weights_and_a_card(name: str):
    folder = embedded_dir(name)
    assert list(folder.rglob("*.safetensors"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    for word in ("seed", "hardware", "Limits", "Sources", "licence"):
        assert word in card


def test_embedded_models_fit_and_name_no_machine():
    assert 0 < sum(file.stat().st_size for file in embedded_files()) <= 60e6
    for file in embedded_files():
        if file.suffix == ".json":
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"_name_or_path|\"/(root|home|work|tmp)/", text), file


def test_links_of_the_readme_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert local
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_programs_let_waiting_threads_sleep():
    code = "import os, sys; from kinema.apps.cli import main; main(['--version']); print(os.environ['OMP_WAIT_POLICY'])"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split()[-1] == "PASSIVE"
